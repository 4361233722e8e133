interface Described {
  name: string
  help: {
    summary: string
    usage: string
    options: readonly (readonly [string, string])[]
    examples: readonly string[]
  }
}

/** The text of the manual page. */
export function manualPage(from: { descriptions: readonly Described[]; summaries: readonly (readonly [string, string])[]; version: string }): string
