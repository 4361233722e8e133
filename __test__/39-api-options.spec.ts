/** Sizes as they are written, and near-misses. */
import test from 'ava'
import { Qcow2Error } from '../js/index.js'
import { checkOptions, flag, nearest, oneOf } from '../js/options.js'
import { exact, narrow, parseCount, parseSize } from '../js/sizes.js'

test('sizes are powers of 1024, with fractions', (t) => {
  const sizes: [unknown, bigint][] = [
    [0, 0n],
    [512, 512n],
    [2 ** 53 - 1, 9007199254740991n],
    [2n ** 63n - 1n, 2n ** 63n - 1n],
    ['0', 0n],
    ['1', 1n],
    ['7B', 7n],
    ['10k', 10240n],
    ['10K', 10240n],
    [' 10 G ', 10n << 30n],
    ['1.5T', 3n << 39n],
    ['0.5M', 1n << 19n],
    ['0.1K', 102n],
    ['7E', 7n << 60n],
    ['9007199254740993', 9007199254740993n],
  ]
  for (const [given, bytes] of sizes) t.is(parseSize(given, 'size'), bytes, String(given))
})

test('what is no size is refused and names the option', (t) => {
  for (const given of [
    '',
    ' ',
    'G',
    '10GB',
    '10GiB',
    '1e3',
    '0x10',
    '-1',
    '1,5G',
    '1.G',
    '.5G',
    '8E',
    '10 0',
    'NaN',
    -1,
    1.5,
    Number.NaN,
    Infinity,
    2 ** 53,
    -1n,
    2n ** 63n,
    null,
    true,
    {},
    [],
  ]) {
    const error = t.throws(() => parseSize(given, 'clusterSize'), { instanceOf: Qcow2Error, code: 'ERR_QCOW2_INVALID_ARGUMENT' }, String(given))
    t.is(error?.details.argument, 'clusterSize')
    t.regex(error?.message ?? '', /clusterSize/)
  }
  t.throws(() => parseCount('1', 'position'), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
})

test('a size of a wrong type is told that it may be text', (t) => {
  for (const given of [null, true, {}, []])
    t.throws(() => parseSize(given, 'size'), { message: /^size must be a number, a bigint or text such as '10G'/ })
})

test('numbers are exact or refused', (t) => {
  t.is(exact(5n, false, 'it', undefined), 5)
  t.is(exact(5n, true, 'it', undefined), 5n)
  t.throws(() => exact(2n ** 53n, false, 'it', 'a.qcow2'), { code: 'ERR_QCOW2_NEEDS_BIGINT' })
  t.is(narrow(2n ** 53n), 2n ** 53n)
  t.is(narrow(2n ** 53n - 1n), 2 ** 53 - 1)
})

test('near-misses name what was meant', (t) => {
  const known = ['clusterSize', 'refcountBits', 'backingFormat', 'backing', 'compressionType', 'compression', 'signal', 'onProgress', 'maxOutputSize']
  for (const [word, meant] of [
    ['cluster_size', 'clusterSize'],
    ['clustersize', 'clusterSize'],
    ['cluster-size', 'clusterSize'],
    ['refcount_bits', 'refcountBits'],
    ['refcontBits', 'refcountBits'],
    ['compresion', 'compression'],
    ['compress', 'compression'],
    ['compressionT', 'compressionType'],
    ['backingFmt', 'backingFormat'],
    ['singal', 'signal'],
    ['onprogess', 'onProgress'],
    ['maxOutput', 'maxOutputSize'],
    ['colour', undefined],
    ['x', undefined],
    ['', undefined],
    ['a'.repeat(100_000), undefined],
  ] as const) {
    t.is(nearest(word, known), meant, word.slice(0, 20))
  }
})

test('an unknown option without a near one lists those that there are', (t) => {
  const error = t.throws(() => checkOptions('thing', { frobnicate: 1 }, { strict: flag, mode: oneOf('a', 'b') }), {
    code: 'ERR_QCOW2_UNKNOWN_OPTION',
  })
  t.is(error?.message, "thing has no option 'frobnicate': it knows strict, mode")
  t.throws(() => checkOptions('thing', { mode: 'c' }, { mode: oneOf('a', 'b') }), { message: "mode must be one of 'a', 'b': it is 'c'" })
  t.deepEqual(checkOptions('thing', { strict: undefined, mode: 'a' }, { strict: flag, mode: oneOf('a', 'b') }), { mode: 'a' })
  for (const options of [null, 1, 'x', []]) t.throws(() => checkOptions('thing', options, {}), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  // Names that every object has are no options.
  t.throws(() => checkOptions('thing', { toString: 1 }, { strict: flag }), { code: 'ERR_QCOW2_UNKNOWN_OPTION' })
})
