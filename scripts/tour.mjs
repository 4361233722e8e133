// A tour on real data, in about a minute: a disk made of this package's own dependencies is compressed, brought back, compared, looked at,
// and given an overlay. It uses what any user has: the package and its command line.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, copyFileSync, createReadStream, mkdtempSync, openSync, rmSync, statSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { makeDisk } from './lib/disk.mjs'
import { root, which } from './lib/run.mjs'

const { compare, convert, create, open } = await import('../dist/index.mjs')

const folder = mkdtempSync(join(tmpdir(), 'qcow2-tour-'))
const at = (name) => join(folder, name)
process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
process.on('SIGINT', () => process.exit(130))

await tour()

async function tour() {
  title('A disk made of real files')
  const made = await makeDisk(at('disk.raw'), { folder: join(root, 'node_modules') })
  say(`disk.raw: ${made.files} files, ${size(made.bytes)} (${made.kind}) on a disk of ${size(statSync(at('disk.raw')).size)}`)

  title('Raw to compressed qcow2')
  const ours = await timed(() => shown(convert(at('disk.raw'), at('disk.qcow2'), { compression: 'zlib' })))
  say(`convert('disk.raw', 'disk.qcow2', { compression: 'zlib' })   ${ours.seconds.toFixed(2)} s, ${size(statSync(at('disk.qcow2')).size)}`)
  besideQemu(ours.seconds)

  title('And back')
  const back = await timed(() => shown(convert(at('disk.qcow2'), at('back.raw'))))
  say(`convert('disk.qcow2', 'back.raw')   ${back.seconds.toFixed(2)} s`)
  const [before, after] = [await sha256(at('disk.raw')), await sha256(at('back.raw'))]
  say(`sha256 of disk.raw  ${before}`, `sha256 of back.raw  ${after}`)
  if (before !== after) throw new Error('the disk that came back differs')
  say('The same, byte for byte.')

  title('What the image says')
  command('info', 'disk.qcow2')
  command('check', 'disk.qcow2')

  title('A chain: only what differs is stored')
  changeSomeSectors()
  await convert(at('changed.raw'), at('monday.qcow2'), { backing: 'disk.qcow2', backingFormat: 'qcow2' })
  await create(at('tuesday.qcow2'), { backing: 'monday.qcow2', backingFormat: 'qcow2' })
  for (const name of ['disk.qcow2', 'monday.qcow2', 'tuesday.qcow2']) say(`${name.padEnd(14)} ${size(statSync(at(name)).size)}`)
  const { identical } = await compare(at('changed.raw'), at('tuesday.qcow2'))
  if (!identical) throw new Error('the chain does not read as the changed disk')
  say('tuesday.qcow2 reads as the changed disk: its three changed sectors come from monday.qcow2, all else from disk.qcow2.')
  await layers('tuesday.qcow2')
  title('The map: who answers for which part')
  command('map', '--output=json', 'tuesday.qcow2')
  await whoAnswers('tuesday.qcow2')
  say('', 'Your turn:  npm start -- info some.qcow2     npm start -- --help')
}

/** The layers of a chain, top first. */
async function layers(name) {
  const disk = await open(at(name))
  for (const { depth, path, clusterSize, backingFile } of disk.chain) {
    say(`  layer ${depth}: ${path.slice(folder.length + 1)}, clusters of ${size(clusterSize)}${backingFile ? `, backed by ${backingFile}` : ''}`)
  }
  await disk.close()
}

/** Sums the runs of an image by the layer that answers. */
async function whoAnswers(name) {
  const disk = await open(at(name))
  const sums = new Map()
  try {
    for await (const { depth, zero, length } of disk.map()) {
      const who = zero ? 'zeros' : disk.chain[depth].path.slice(folder.length + 1)
      sums.set(who, (sums.get(who) ?? 0) + length)
    }
  } finally {
    await disk.close()
  }
  say(...[...sums].map(([who, bytes]) => `${who.padEnd(14)} ${size(bytes)}`))
}

/** Three sectors of a copy get other bytes: first, middle, last. */
function changeSomeSectors() {
  copyFileSync(at('disk.raw'), at('changed.raw'))
  const last = statSync(at('changed.raw')).size - 512
  const file = openSync(at('changed.raw'), 'r+')
  for (const position of [0, Math.floor(last / 1024) * 512, last]) writeSync(file, Buffer.alloc(512, 'monday '), 0, 512, position)
  closeSync(file)
}

/** The same conversion by qemu-img, where there is one, and a second opinion on what we wrote. */
function besideQemu(ourSeconds) {
  if (!which('qemu-img')) return
  const args = ['convert', '-f', 'raw', '-O', 'qcow2', '-c', at('disk.raw'), at('qemu.qcow2')]
  const begin = performance.now()
  if (spawnSync('qemu-img', args).status !== 0) return
  const seconds = (performance.now() - begin) / 1000
  say(`qemu-img convert -O qcow2 -c                                ${seconds.toFixed(2)} s, ${size(statSync(at('qemu.qcow2')).size)}`)
  const ratio = seconds / ourSeconds
  say(
    ratio >= 1
      ? `ours is ${ratio.toFixed(2)} times as fast (one run, not a benchmark)`
      : `ours takes ${(1 / ratio).toFixed(2)} times as long (one run, not a benchmark)`,
  )
  const opinion = spawnSync('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', at('disk.raw'), at('disk.qcow2')], { encoding: 'utf8' })
  say(`qemu-img compare disk.raw disk.qcow2: ${opinion.stdout.trim() || opinion.stderr.trim()}`)
  if (opinion.status !== 0) throw new Error('qemu-img does not read the same bytes')
}

/** Runs the command line in the tour's folder and shows at most sixteen lines. */
function command(...words) {
  say(`$ qcow2 ${words.join(' ')}`)
  const { stdout, stderr, status } = spawnSync(process.execPath, [join(root, 'dist', 'cli', 'main.js'), ...words], {
    cwd: folder,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  })
  if (status !== 0) throw new Error(`qcow2 ${words.join(' ')} ended with exit code ${status}: ${stderr}`)
  const lines = stdout.trimEnd().split('\n')
  say(...lines.slice(0, 16).map((line) => `  ${line}`))
  if (lines.length > 16) say(`  … ${lines.length - 16} more lines`)
}

/** Follows a job: a bar where somebody watches, nothing in a log. */
async function shown(job) {
  if (process.stderr.isTTY) {
    for await (const { done, total } of job) {
      const part = total > 0 ? done / total : 1
      process.stderr.write(`\r  ${'█'.repeat(Math.round(part * 30)).padEnd(30, '░')} ${Math.round(part * 100)} %`)
    }
    process.stderr.write('\r\u001b[K')
  }
  return await job
}

async function timed(work) {
  const begin = performance.now()
  return { result: await work(), seconds: (performance.now() - begin) / 1000 }
}

async function sha256(path) {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk)
  return hash.digest('hex')
}

function title(text) {
  say('', `${text}`, '─'.repeat(text.length))
}

function say(...lines) {
  for (const line of lines) console.log(line)
}

function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${value.toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`
}
