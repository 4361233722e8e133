// `npm run docs`: the reference of the package into docs/api, that of the crates into Cargo's target folder.
import { bin, must } from './lib/run.mjs'
import { setup } from './setup.mjs'

await setup({ tests: false })
await must(bin('typedoc'), ['--treatWarningsAsErrors'], { show: true })
await must('cargo', ['doc', '--profile', 'fast', '--no-deps', '--document-private-items', '--workspace'], {
  show: true,
  env: { RUSTDOCFLAGS: '-D warnings -A rustdoc::private_intra_doc_links' },
})
