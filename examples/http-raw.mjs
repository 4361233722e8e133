// Serves images as the raw disks that they hold: the length is known before the first byte, and ranges work, so that a download can be resumed.
//   node examples/http-raw.mjs image.qcow2     then: curl -O http://localhost:8080/disk.raw
import { once } from 'node:events'
import { createServer } from 'node:http'
import { pipeline } from 'node:stream/promises'
import { create, memoryStorage, open } from 'qcow2'

/** A request handler that streams the disk of one image. */
export function rawDisk(source, options) {
  return async (request, response) => {
    const disk = await open(source, options)
    try {
      const range = rangeOf(request.headers.range, disk.virtualSize)
      if (range === undefined) {
        response.writeHead(416, { 'content-range': `bytes */${disk.virtualSize}` }).end()
        return
      }
      const { start, end, partial } = range
      response.writeHead(partial ? 206 : 200, {
        'content-type': 'application/octet-stream',
        'content-length': end - start + 1,
        'accept-ranges': 'bytes',
        ...(partial ? { 'content-range': `bytes ${start}-${end}/${disk.virtualSize}` } : {}),
      })
      if (request.method === 'HEAD' || end < start) response.end()
      // A client that goes away destroys the stream, and with it the reading.
      else await pipeline(disk.createReadStream({ start, end }), response)
    } catch (error) {
      if (error.code !== 'ERR_STREAM_PREMATURE_CLOSE') throw error
    } finally {
      await disk.close()
    }
  }
}

/** `bytes=start-end` and `bytes=start-`; undefined if the disk ends before. */
function rangeOf(header, size) {
  const match = /^bytes=(\d+)-(\d*)$/.exec(header ?? '')
  if (match === null) return { start: 0, end: size - 1, partial: false }
  const start = Number(match[1])
  const end = match[2] === '' ? size - 1 : Math.min(Number(match[2]), size - 1)
  return start <= end ? { start, end, partial: true } : undefined
}

const [path] = process.argv.slice(2)
const image = path ?? memoryStorage()
if (path === undefined) await create(image, { size: '1M' })
const handle = rawDisk(image)
const server = createServer((request, response) => {
  handle(request, response).catch((error) => {
    console.error(error)
    if (response.headersSent) response.destroy()
    else response.writeHead(500).end(error.code)
  })
})
server.listen(path === undefined ? 0 : 8080, '127.0.0.1')
await once(server, 'listening')
const url = `http://127.0.0.1:${server.address().port}/disk.raw`
console.log(`serving ${url}`)

if (path === undefined) {
  // Without an image: asks itself, and ends.
  const whole = await fetch(url)
  console.log(`${whole.status}: ${(await whole.arrayBuffer()).byteLength} bytes, as announced: ${whole.headers.get('content-length')}`)
  const part = await fetch(url, { headers: { range: 'bytes=512-1023' } })
  console.log(`${part.status}: ${part.headers.get('content-range')}, ${(await part.arrayBuffer()).byteLength} bytes`)
  server.close()
  server.closeAllConnections()
}
