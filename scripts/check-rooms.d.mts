export function findBreaches(): Promise<string[]>
export function judgeImport(file: string, target: string): string | undefined
