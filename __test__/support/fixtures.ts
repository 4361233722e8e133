/** Small images with known bytes, made by qemu-img, and helpers to expect failures. */
import { join } from 'node:path'
import { Qcow2Error } from '../../js/index.js'
import { qemu, temporaryFolder } from './qemu.js'

export const MIB = 1 << 20

/** A base with 7s from 1 to 3 MiB, and an overlay with 9s at 2 MiB for 64 KiB and explicit zeros at 1 MiB for 64 KiB. Both 8 MiB. */
export async function smallChain(): Promise<{ folder: string; base: string; top: string }> {
  const folder = temporaryFolder()
  const base = join(folder, 'base.qcow2')
  const top = join(folder, 'top.qcow2')
  await qemu.create(base, { size: 8 * MIB })
  await qemu.io(base, ['write -P 7 1M 2M'])
  await qemu.create(top, { backing: 'base.qcow2', cwd: folder })
  await qemu.io(top, ['write -P 9 2M 64k', 'write -z 1M 64k'])
  return { folder, base, top }
}

/** The bytes of {@link smallChain}'s overlay. */
export function smallModel(): Buffer {
  const model = Buffer.alloc(8 * MIB)
  model
    .fill(7, MIB, 3 * MIB)
    .fill(9, 2 * MIB, 2 * MIB + 65536)
    .fill(0, MIB, MIB + 65536)
  return model
}

/** The Qcow2Error that work ends with. Anything else fails the test. */
export async function failure(work: () => unknown): Promise<Qcow2Error> {
  try {
    await work()
  } catch (error) {
    if (error instanceof Qcow2Error) return error
    throw error
  }
  throw new Error('it should have failed')
}

/** Everything a stream gives. */
export async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const all: Uint8Array[] = []
  for await (const chunk of chunks) all.push(chunk)
  return Buffer.concat(all)
}
