/** `--profile`. */
import { library, type ProfileName } from './library.js'
import { Refusal } from './refusal.js'

/** The profile of that name. */
export function profileNamed(value: string): ProfileName {
  const { profiles } = library()
  if (Object.hasOwn(profiles, value)) return value as ProfileName
  throw new Refusal(`Unknown profile '${value}'`, { hint: `The profiles are ${Object.keys(profiles).join(', ')}.` })
}
