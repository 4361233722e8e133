/** Text of an image as a terminal may see it: control characters could speak to it, and a line break would forge a line. JSON escapes by itself. */
export function visible(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`)
}
