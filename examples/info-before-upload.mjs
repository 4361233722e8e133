// Looks at an image before it is taken in: nothing that it names is opened, and a size limit holds.
//   node examples/info-before-upload.mjs [image]
import { create, info, memoryStorage, Qcow2Error } from 'qcow2'

/** What is wrong with an upload, as sentences; none if it may be taken. */
export async function judgeUpload(source, { maxVirtualSize = '2T' } = {}) {
  try {
    const facts = await info(source, { limits: { maxVirtualSize } })
    const reasons = []
    if (facts.backingFile !== undefined) reasons.push(`it needs a backing file: ${JSON.stringify(facts.backingFile)}`)
    if (facts.dataFile !== undefined) reasons.push(`it keeps its data elsewhere: ${JSON.stringify(facts.dataFile)}`)
    if (facts.encrypted) reasons.push(`it is encrypted (${facts.encryption})`)
    if (facts.corrupt) reasons.push('it is marked corrupt')
    return reasons
  } catch (error) {
    if (error instanceof Qcow2Error) return [`${error.code}: ${error.message}`]
    throw error
  }
}

const [path] = process.argv.slice(2)
if (path !== undefined) {
  report(path, await judgeUpload(path))
} else {
  const good = memoryStorage()
  await create(good, { size: '10G' })
  report('a new image', await judgeUpload(good))
  const thief = memoryStorage()
  await create(thief, { size: '10G', backing: '/etc/passwd', backingFormat: 'raw', backingUnchecked: true })
  report('an image that names a file of the host', await judgeUpload(thief))
  const huge = memoryStorage()
  await create(huge, { size: '8T' })
  report('an image of 8 TiB', await judgeUpload(huge))
  report('something else', await judgeUpload(new TextEncoder().encode('<!doctype html>')))
}

function report(what, reasons) {
  console.log(`${what}: ${reasons.length === 0 ? 'accepted' : reasons.join('; ')}`)
}
