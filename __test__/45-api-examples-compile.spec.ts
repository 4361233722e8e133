/** Every piece of TypeScript in the documentation compiles, strictly, against the sources. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import ts from 'typescript'
import { temporaryFolder } from './support/qemu.js'

const root = join(__dirname, '..')

/** The fenced TypeScript of a file; in a source, of its comments. */
function pieces(path: string): string[] {
  const text = readFileSync(join(root, path), 'utf8')
  const plain = path.endsWith('.ts') ? text.replace(/^\s*\* ?/gm, '') : text
  return [...plain.matchAll(/^```(?:ts|typescript|js|javascript)\n(.*?)^```$/gms)].map((match) => match[1] ?? '')
}

test('TypeScript in the documentation compiles', (t) => {
  const documents = [
    'README.md',
    ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`),
    ...readdirSync(join(root, 'js')).map((name) => `js/${name}`),
  ]
  const folder = temporaryFolder()
  const files: string[] = []
  for (const path of documents.filter((name) => /\.(md|ts)$/.test(name))) {
    for (const [index, code] of pieces(path).entries()) {
      // One folder each: their names must not meet.
      const place = join(folder, path.replace(/\W/g, '-'), String(index))
      mkdirSync(place, { recursive: true })
      // ESM, as the pieces are written: they await at the top.
      files.push(join(place, 'piece.mts'))
      writeFileSync(files.at(-1) as string, `${code}\nexport {}\n`)
    }
  }
  t.true(files.length >= 15, `${files.length} pieces`)
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, root)
  const program = ts.createProgram(files, {
    ...options,
    noEmit: true,
    noUnusedLocals: false,
    paths: { qcow2: [join(root, 'js/index.ts')] },
    typeRoots: [join(root, 'node_modules/@types')],
  })
  const faults = ts.getPreEmitDiagnostics(program).map((fault) => {
    const text = ts.flattenDiagnosticMessageText(fault.messageText, '\n')
    return `${fault.file?.fileName.replace(folder, '') ?? ''}: ${text}`
  })
  t.deepEqual(faults, [])
})
