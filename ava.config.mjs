// Workers are processes: the addon is then loaded once a file, and a crash names its file.
export default {
  files: ['__test__/**/*.spec.ts'],
  extensions: ['ts'],
  nodeArguments: ['--require=tsx/cjs'],
  workerThreads: false,
  timeout: '2m',
}
