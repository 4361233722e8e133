export function findUnlicensed(): Promise<string[]>
export function licenseTexts(): Promise<string>
export function isAllowed(expression: string): boolean
