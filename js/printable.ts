/**
 * Text of an image, such as a name in it, as a terminal or a log may show it: control characters could speak to a terminal, a line break would forge a
 * line, and what turns the direction of writing hides what is there. They become `\u{…}`. Messages of errors and of findings are made so; facts
 * (`info`, `inspect`, snapshots, bitmaps) are what the image says.
 *
 * @example
 * ```ts
 * import { open, printable } from 'qcow2'
 * await using disk = await open('disk.qcow2')
 * for (const { name } of await disk.snapshots.list()) console.log(printable(name))
 * ```
 */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`)
}
