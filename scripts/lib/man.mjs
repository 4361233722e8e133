// The manual page, made of what the commands say of themselves (js/cli/catalog.ts): it cannot say anything else than `--help`.

/** The text of qcow2(1) in the macros of man(7). */
export function manualPage({ descriptions, summaries, version }) {
  const list = summaries.map(([name, text]) => `.TP\n.B ${escaped(name)}\n${line(sentence(text))}`)
  return `.\\" Made by scripts/build.mjs of the help of the commands.
.TH QCOW2 1 "" "qcow2 ${escaped(version)}" "User Commands"
.SH NAME
qcow2 \\- disk images in the qcow2 and raw formats
.SH SYNOPSIS
.B qcow2
.RB [ \\-h | \\-V ]
.I command
.RI [ options ]
.SH DESCRIPTION
Takes the words of
.BR qemu\\-img (1)
10.0.2 and answers in its words, its JSON and its exit codes.
A link named
.B qemu\\-img
that points to it speaks under that name.
.PP
Long options may be abbreviated, letters clustered, and options stand behind operands; two dashes end them.
Sizes are bytes, or carry a suffix k, M, G, T, P or E for powers of 1024.
.SH COMMANDS
${list.join('')}${descriptions.map(section).join('')}.SH SIGNALS
SIGUSR1 prints the progress of a command on standard error.
The first SIGINT, SIGTERM or SIGHUP cancels what runs and takes back what is half done; the command then dies by that signal.
.SH EXIT STATUS
0 if all was done and 1 if not, unless a command says otherwise.
.SH SEE ALSO
.BR qemu\\-img (1)
`
}

function section({ name, help: { summary, usage, options, examples } }) {
  const rows = options.map(([option, text]) =>
    option === '' ? `.PP\n${line(sentence(text))}` : `.TP\n${line(option, '\\fB', '\\fR')}${line(sentence(text))}`,
  )
  const shown = examples.map((example) => `qcow2 ${escaped(example)}\n`)
  return `.SH ${escaped(name).toUpperCase()}
${line(summary)}.PP
.nf
.RS
${line(`qcow2 ${name} ${usage}`)}.RE
.fi
${rows.join('')}.TP
\\fB\\-h, \\-\\-help\\fR
Print this help.
.PP
Examples:
.PP
.nf
.RS
${shown.join('')}.RE
.fi
`
}

function sentence(text) {
  const first = text.charAt(0).toUpperCase() + text.slice(1)
  return /[.!?]$/.test(first) ? first : `${first}.`
}

/** A line of text. One that begins with a dot or quote would be a request. */
function line(text, before = '', after = '') {
  const safe = escaped(text)
  return `${before === '' && /^['.]/.test(safe) ? '\\&' : ''}${before}${safe}${after}\n`
}

function escaped(text) {
  return text.replace(/\\/g, '\\e').replace(/-/g, '\\-').replace(/…/g, '...').replace(/’/g, "'")
}
