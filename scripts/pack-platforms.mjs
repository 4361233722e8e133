// Makes what a release publishes, each in a folder of its own: the package for every platform whose binary is at hand, and the main package
// with those as optional dependencies.
//   node scripts/pack-platforms.mjs [--out npm] [--artifacts <folder with *.node>] [--profile release|fast]
// The committed manifest has no optional dependencies: an install in a bare clone would ask for packages that are not published yet.
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { licenseTexts } from './check-licenses.mjs'
import { bin, must, root } from './lib/run.mjs'
import { setup } from './setup.mjs'

const { values: options } = parseArgs({
  options: { out: { type: 'string', default: 'npm' }, artifacts: { type: 'string' }, profile: { type: 'string', default: 'release' } },
})
const out = resolve(root, options.out)

await setup({ tests: false, profile: options.profile })
rmSync(out, { recursive: true, force: true })
// napi stays within the folder of the manifest that it reads.
mkdirSync(out, { recursive: true })
copyFileSync(join(root, 'package.json'), join(out, 'package.json'))
await must(bin('napi'), ['create-npm-dirs', '--npm-dir', '.'], { cwd: out })
rmSync(join(out, 'package.json'))
const { ready, missing } = fillPlatforms(await licenseTexts())
await makeMainPackage(ready)
console.log(`ready in ${options.out}: qcow2, ${ready.join(', ') || 'no platform'}`)
if (missing.length > 0) console.log(`no binary at hand, folders removed: ${missing.join(', ')}`)

/** Copies the binaries and the licences of what they are linked from. A platform without one is taken out: an empty package would shadow the honest load error. */
function fillPlatforms(licenses) {
  const sources = [root, ...(options.artifacts ? [resolve(options.artifacts)] : [])]
  const ready = []
  const missing = []
  for (const platform of readdirSync(out)) {
    const file = `qcow2.${platform}.node`
    const source = sources.map((folder) => join(folder, file)).find((path) => existsSync(path))
    if (source) {
      copyFileSync(source, join(out, platform, file))
      for (const license of ['LICENSE-MIT', 'LICENSE-APACHE']) copyFileSync(join(root, license), join(out, platform, license))
      addToFiles(join(out, platform, 'package.json'), ['LICENSE-MIT', 'LICENSE-APACHE', 'THIRD-PARTY-LICENSES.txt'])
      writeFileSync(join(out, platform, 'THIRD-PARTY-LICENSES.txt'), licenses)
      ready.push(platform)
    } else {
      rmSync(join(out, platform), { recursive: true })
      missing.push(platform)
    }
  }
  return { ready, missing }
}

function addToFiles(path, names) {
  const manifest = JSON.parse(readFileSync(path, 'utf8'))
  manifest.files.push(...names)
  writeFileSync(path, `${JSON.stringify(manifest, null, 2)}\n`)
}

/** What `npm pack` would take, with a manifest that names the platforms and nothing that only a clone needs. */
async function makeMainPackage(platforms) {
  const folder = join(out, 'qcow2')
  const [{ files }] = JSON.parse(await must('npm', ['pack', '--dry-run', '--json', '--ignore-scripts', '--loglevel=silent']))
  for (const { path } of files) {
    mkdirSync(join(folder, path, '..'), { recursive: true })
    copyFileSync(join(root, path), join(folder, path))
  }
  const { devDependencies: _, scripts: __, ...manifest } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  manifest.optionalDependencies = Object.fromEntries(platforms.map((platform) => [`qcow2-${platform}`, manifest.version]))
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`)
}
