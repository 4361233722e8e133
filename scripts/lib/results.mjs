// What the test runners themselves report, as counts. A runner that fails without a failed test, or that ran no test at all, counts as one
// failure: silence must not look like success.

/** cargo-nextest: the `Summary` line. */
export function readNextest({ code, output }) {
  const summary = plain(output).match(/Summary \[.*?\]\s+(\d+)(?:\/\d+)? tests? run: (\d+) passed(.*)/)
  if (!summary) return died('cargo nextest', code)
  const passed = Number(summary[2])
  const skipped = Number(summary[3].match(/(\d+) skipped/)?.[1] ?? 0)
  return judge('cargo nextest', code, { passed, failed: Number(summary[1]) - passed, skipped })
}

/** cargo test: one `test result:` line for each binary. `mayBeEmpty`: a workspace without documentation tests is no failure. */
export function readCargoTest({ code, output }, { mayBeEmpty = false } = {}) {
  const counts = { passed: 0, failed: 0, skipped: 0 }
  for (const line of plain(output).matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/gm)) {
    counts.passed += Number(line[1])
    counts.failed += Number(line[2])
    counts.skipped += Number(line[3])
  }
  return judge('cargo test', code, counts, mayBeEmpty)
}

/** TAP, as ava writes it. A file that dies is a `not ok` line of its own there. */
export function readTap({ code, output }) {
  const counts = { passed: 0, failed: 0, skipped: 0 }
  for (const line of plain(output).matchAll(/^(not )?ok \d+(.*)$/gm)) {
    if (/# SKIP/.test(line[2])) counts.skipped += 1
    else if (line[1] && !/# TODO/.test(line[2])) counts.failed += 1
    else counts.passed += 1
  }
  return judge('ava', code, counts)
}

/** The failed tests of a TAP text, with what they said: everything up to the next line of TAP. */
export function failedBlocks(output) {
  const blocks = plain(output).split(/^(?=(?:not )?ok \d|\d+\.\.\d+)/m)
  return blocks.filter((block) => /^not ok \d/.test(block) && !/# TODO/.test(block.split('\n')[0]))
}

function judge(runner, code, counts, mayBeEmpty = false) {
  const problems = []
  if (code !== 0 && counts.failed === 0) problems.push(`${runner} ended with exit code ${code} though no test failed`)
  else if (counts.passed + counts.failed === 0 && !mayBeEmpty) problems.push(`${runner} ran no test`)
  return { ...counts, failed: counts.failed + problems.length, problems }
}

function died(runner, code) {
  return { passed: 0, failed: 1, skipped: 0, problems: [`${runner} reported no result (exit code ${code})`] }
}

function plain(text) {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: colour codes begin with one
  return text.replace(/\u001b\[[0-9;]*m/g, '')
}
