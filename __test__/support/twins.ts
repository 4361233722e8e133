/** The same command given to qemu-img and to ours, in two folders that hold the same images: what they say and what they leave must be the same. */
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { answer } from './cli.js'
import { must, run, temporaryFolder } from './qemu.js'

/** An image whose bytes and facts are compared. */
export interface TwinImage {
  name: string
  format: 'qcow2' | 'raw'
}

export class Twins {
  readonly ours: string
  readonly theirs: string

  private constructor(
    folder: string,
    private readonly images: readonly TwinImage[],
  ) {
    this.ours = join(folder, 'ours')
    this.theirs = join(folder, 'theirs')
  }

  /** `make` is called for each folder and does the same in both. */
  static async make(images: readonly TwinImage[], make: (folder: string) => Promise<unknown>): Promise<Twins> {
    const twins = new Twins(join(temporaryFolder()), images)
    for (const folder of [twins.ours, twins.theirs]) {
      mkdirSync(folder)
      await make(folder)
    }
    return twins
  }

  /** Gives both the same words. What differs, in words; nothing if all is the same. */
  async differences(words: readonly string[], before?: (folder: string) => Promise<unknown>): Promise<string[]> {
    if (before !== undefined) for (const folder of [this.ours, this.theirs]) await before(folder)
    const ours = await answer('qemu-img', words, { cwd: this.ours, ours: true })
    const theirs = await answer('qemu-img', words, { cwd: this.theirs, ours: false })
    const found: string[] = []
    const told = (text: string, folder: string) => text.replaceAll(folder, 'FOLDER')
    for (const key of ['code', 'stdout', 'stderr'] as const) {
      const [a, b] = [told(String(ours[key]), this.ours), told(String(theirs[key]), this.theirs)]
      if (a !== b) found.push(`${words.join(' ')}: ${key}: ${a} instead of ${b}`)
    }
    for (const image of this.images) found.push(...(await this.imageDifferences(image, words.join(' '))))
    return found
  }

  /** What an image reads as. */
  async bytes(folder: string, { name, format }: TwinImage): Promise<Buffer> {
    await must('qemu-img', ['convert', '-f', format, '-O', 'raw', name, 'whole.out'], { cwd: folder })
    return readFileSync(join(folder, 'whole.out'))
  }

  private async imageDifferences(image: TwinImage, what: string): Promise<string[]> {
    const found: string[] = []
    const [a, b] = [await this.bytes(this.ours, image), await this.bytes(this.theirs, image)]
    if (!a.equals(b)) found.push(`${what}: ${image.name} reads differently (${a.length} and ${b.length} bytes)`)
    const facts = await Promise.all([factsOf(this.ours, image), factsOf(this.theirs, image)])
    if (facts[0] !== facts[1]) found.push(`${what}: info of ${image.name}: ${facts[0]} instead of ${facts[1]}`)
    if (image.format === 'qcow2') {
      const { code, stdout, stderr } = await run('qemu-img', ['check', '-f', 'qcow2', image.name], { cwd: this.ours })
      if (code !== 0) found.push(`${what}: check of ${image.name}: ${stdout}${stderr}`)
    }
    return found
  }
}

/** `info` without what a file system decides. */
async function factsOf(folder: string, { name, format }: TwinImage): Promise<string> {
  const { stdout } = await must('qemu-img', ['info', '-f', format, '--output=json', name], { cwd: folder })
  const facts = JSON.parse(stdout.toString()) as Record<string, unknown>
  for (const key of ['actual-size', 'children', 'full-backing-filename']) delete facts[key]
  for (const snapshot of (facts.snapshots ?? []) as Record<string, unknown>[]) for (const key of ['date-sec', 'date-nsec']) delete snapshot[key]
  return JSON.stringify(facts)
}
