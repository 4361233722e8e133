/** `completion`: what makes a shell complete the commands. Not a command of qemu-img. */
import { describeAll } from '../catalog.js'
import type { CommandHelp } from '../help.js'
import type { Program } from '../program.js'
import { misuse } from '../refusal.js'
import { bashScript } from '../shells/bash.js'
import { fishScript } from '../shells/fish.js'
import { shellCommand, shellKeys } from '../shells/shapes.js'
import { zshScript } from '../shells/zsh.js'
import { plainGrammar, readWords } from '../words.js'

const GRAMMAR = plainGrammar('', '', '')

const HELP: CommandHelp = {
  summary: 'Print what makes a shell complete commands, options and their values, under the name that this was called by.',
  usage: 'bash|zsh|fish',
  options: [
    ['bash', 'source <(qcow2 completion bash)'],
    ['zsh', 'a file _qcow2 in a folder of $fpath, or source <(qcow2 completion zsh)'],
    ['fish', 'qcow2 completion fish | source'],
  ],
  examples: ['completion bash', 'completion zsh'],
}

const SHELLS = { bash: bashScript, zsh: zshScript, fish: fishScript }

/** Runs the command. */
export async function completion(program: Program, words: readonly string[]): Promise<number> {
  const [shell, ...more] = readWords(program, words, GRAMMAR, HELP, () => {})
  if (!isShell(shell) || more.length > 0) throw misuse('Expecting the name of a shell: bash, zsh or fish')
  const commands = (await describeAll()).map(shellCommand)
  program.out.print(SHELLS[shell](program.name, commands, shellKeys()))
  return 0
}

function isShell(word: string | undefined): word is keyof typeof SHELLS {
  return word !== undefined && Object.hasOwn(SHELLS, word)
}
