/**
 * Command lines that are given to qemu-img and to ours, to be answered alike: stdout, stderr, exit code. One a line; words are separated by
 * spaces, and held together by single quotes. Where a file `x` comes out, it must hold the same.
 */

const PROGRAM = `

foo
--bar
-z
-T
`

const USAGE = `
info
info o.q base.q
info --bar
info -z o.q
info -Uz o.q
info --output
info --output=x o.q
info --out json
info --f
info --force-share=1 o.q
info --image-opts -f qcow2 o.q
info -f
info -- -f
info --output=x --bar
info --bar --output=x
check
check -r x o.q
check --repair o.q
check -T foo o.q
check --output=x o.q
check a b
map
map -s zz o.q
map -s -1 o.q
map -l zz o.q
map -l 9E o.q
map --s o.q
map --max o.q
compare
compare a
compare a b c
compare --output=json a b
compare -T foo a b
compare --image-opts -f raw a b
compare -r raw a b
measure
measure a b
measure --size zz
measure --size 1G o.q
measure --size 1G -f qcow2
measure --size 1G -l x
measure --size 8E
measure --size -1
measure --size -0
measure --output=x --size 3
measure --s 1
snapshot
snapshot o.q x
snapshot -l -c x o.q
snapshot -c a -d b o.q
snapshot -l -l o.q
snapshot --output=json o.q
convert
convert a
convert --p
convert --t a b
convert --b a b
convert --so a b
convert -m 17 o.q x
convert -m x o.q x
convert -m 0 o.q x
convert -m 1k o.q x
convert -S 3 o.q x
convert -S zz o.q x
convert -S 17M o.q x
convert -S -1 o.q x
convert -r zz o.q x
convert -t foo o.q x
convert -T foo o.q x
convert -o '' o.q x
convert -o ,a=b o.q x
convert --target-is-zero o.q x
convert --target-image-opts o.q x
convert --skip-broken-bitmaps o.q x
convert --bitmaps o.q o.q x
convert -C -c -O qcow2 o.q x
convert -C -S 4k o.q x
convert -C --salvage o.q x
convert -n -o size=3 o.q empty.raw
convert --object foo o.q x
convert --object secret o.q x
convert -l snapshot.foo=1 o.q x
convert -O qcow2 -o help
convert -o help
convert -o help a
convert -o help a b
convert -O foo -o help
convert -O qcow2 -o size=1,help a b
convert -m 17 -S 3 o.q x
convert -S 3 -m 17 o.q x
convert --target-is-zero -C -c o.q x
convert --target-is-zero --target-image-opts o.q x
convert -n -o size=3 --target-is-zero o.q x
convert -n -o size=3 --skip-broken-bitmaps o.q x
convert -o help --target-is-zero
convert -o help -T foo
convert --bitmaps -T foo a b x
convert -f qcow2 --image-opts o.q x
dd if=o.q of=x count=1k
dd if=o.q of=x count=
dd
dd if=o.q
dd of=x
dd if=o.q of=x bs=zz
dd if=o.q of=x bs=0
dd if=o.q of=x bs=3G
dd if=o.q of=x foo=1
dd if=o.q of=x foo
dd if=o.q of=x count=-1
dd if=o.q of=x count=x
dd if=o.q of=x skip=x
dd if=o.q of=x skip=10M
dd -n if=o.q of=x
dd --image-opts if=o.raw -f raw of=x
create
create x
create x 1M 2M
create x zz
create x 1Q
create x 8E
create x -- -1
create x 9223372036854775808
create x 99999999999999999999
create x 1.5
create x 0x10k
create x 1e3
create x ''
create x 1k1
create x 1.3b
create x inf
create x 1,5k
create --b x
create --option
create -o help
create -f qcow2 -o help
create -f qcow2 -o help x
create -f raw -o help x
create -f foo -o help
create -f qcow2 -o size=3,help
create -f qcow2 -o size=3,help=1 x
create -f qcow2 -o x=,,help x 1M
create -f qcow2 -o '?'
create -f qcow2 -o ,help
create -f qcow2 -o a=b, x 1M
create -f qcow2 -o ,, x 1M
create -f qcow2 -o size=1,, x
create -f qcow2 -o size=1,,, x
create -f qcow2 -o a,,b=3 x 1M
create -f qcow2 -o =5 x 1M
create -f qcow2 -o no x 1M
create -f qcow2 -o nosize x 1M
create -f qcow2 -o nofoo x 1M
create -f qcow2 -o noextended_l2=on x 1M
create -f qcow2 -o foo=1 x 1M
create -f qcow2 -o foo x 1M
create -f qcow2 -o size=zz x
create -f qcow2 -o size=-1 x
create -f qcow2 -o lazy_refcounts=ja x 1M
create -f qcow2 -o cluster_size x 1M
create -f qcow2 -o refcount_bits=x x 1M
create -f qcow2 -o refcount_bits=99999999999999999999 x 1M
create -f qcow2 -o size=1M x 2M
create -f foo x 1M
create -f raw -b txt -F raw x 1M
create -f raw -F raw x 1M
create --object foo x 1M
create --object secret x 1M
`

const INFO = `
info o.q
info --output=json o.q
info --output json --backing-chain o.q
info -b o.q
info --backing-chain --output=json sub/o.q
info sub/o.q
info --backing-chain sub/o.q
info -U o.q
info -f raw o.q
info -f qcow2 o.q
info -f raw --output=json txt
info file:o.q
info --output=json file:o.q
info file:nope
info c.q
info zstd.q
info --output=json zstd.q
info ext.q
info --output=json ext.q
info v2.q
info --output=json v2.q
info df.q
info --output=json df.q
info nodata.q
info aes.q
info --output=json aes.q
info bm.q
info --output=json bm.q
info big.q
info o.raw
info zero
info --output=json zero
info txt
info miss.q
info --backing-chain miss.q
info --backing-chain miss2.q
info --backing-chain loop.q
info loop.q
info json.q
info badbase.q
info --backing-chain badbase.q
info nope
info nope -f qcow2
info ''
info dir
info a:b
info -f qcow2 txt
info -f qcow2 zero
info -f foo o.q
info leak.q
info dirty.q
info --output=json dirty.q
info corrupt.q
info --output=json corrupt.q
info feature.q
info cluster.q
info version.q
info -f qcow2 version.q
info crypt.q
info order.q
info length.q
info backing.q
info l1entries.q
info l1offset.q
info reftable.q
info short.q
info cut.q
`

const SNAPSHOT = `
snapshot o.q
snapshot -l o.q
snapshot --list o.q
snapshot -q -l o.q
snapshot -U -l o.q
snapshot base.q
snapshot -l o.raw
snapshot -f raw -l o.q
snapshot -f qcow2 o.raw
snapshot -l nope
snapshot -l miss.q
snapshot -l miss2.q
snapshot -l df.q
snapshot -l nodata.q
`

const MAP = `
map o.q
map --output=json o.q
map --output=json sub/o.q
map sub/o.q
map c.q
map --output=json c.q
map zstd.q
map --output=json ext.q
map ext.q
map --output=json v2.q
map --output=json df.q
map df.q
map nodata.q
map --output json zero
map zero
map txt
map --output=json txt
map -s 64k -l 128k o.q
map -s 64k -l 128k --output=json o.q
map -s 0x10 --output=json o.q
map -s 100M --output=json o.q
map -s 100M o.q
map -l 0 --output=json o.q
map -l 1 --output=json o.q
map -s 1 -l 1 --output=json o.q
map -s 2M --output=json o.q
map -l 100M --output=json o.q
map -f raw o.q
map -f raw --output=json o.q
map -U o.q
map --output=json big.q
map -l 1T --output=json big.q
map nope
map miss.q
map miss2.q
map badbase.q
map -f foo o.q
map feature.q
map short.q
map dirty.q
map corrupt.q
map leak.q
`

const CHECK = `
check o.q
check --output=json o.q
check -q o.q
check c.q
check --output=json c.q
check zstd.q
check ext.q
check v2.q
check df.q
check bm.q
check --output=json bm.q
check big.q
check -T none o.q
check -U o.q
check -f raw o.q
check -q -f raw o.q
check o.raw
check --output=json o.raw
check zero
check nope
check miss.q
check miss2.q
check nodata.q
check -f foo o.q
check feature.q
check short.q
check leak.q
check -q leak.q
check --output=json leak.q
check twice.q
check low.q
check --output=json low.q
check both.q
check --output=json both.q
check table.q
check dirty.q
check --output=json dirty.q
check corrupt.q
check reserved.q
check copied.q
check outside.q
`

const MEASURE = `
measure o.q
measure --output=json o.q
measure -O qcow2 o.q
measure -O qcow2 c.q
measure -O qcow2 ext.q
measure -O qcow2 --output=json bm.q
measure -O qcow2 o.raw
measure -f raw -O qcow2 o.q
measure -l s1 o.q
measure -l 1 -O qcow2 o.q
measure -l snapshot.name=s1 o.q
measure -l zz o.q
measure -l snapshot.id=7 o.q
measure -l snapshot.foo=1 o.q
measure -l s1 o.raw
measure -U o.q
measure --size 1G
measure --size 1G -O qcow2
measure --size 1.5T -O qcow2 --output=json
measure -s 1G
measure --size 3 -O raw --output json
measure -O qcow2 -o cluster_size=4k,refcount_bits=64 --size 1G
measure -O qcow2 -o extended_l2=on --size 1T
measure -O qcow2 -o preallocation=full o.q
measure -O qcow2 -o preallocation=metadata --size 1G
measure -O qcow2 -o compat=0.10 --size 1G
measure -O qcow2 -o size=5 --size 3
measure -O qcow2 -o cluster_size=3 --size 1G
measure -O qcow2 -o foo=3 --size 1G
measure -O qcow2 -o cluster_size=zz --size 3
measure -O qcow2 -o '' --size 3
measure -O qcow2 -o help
measure -O qcow2 -o help o.q
measure -O qcow2 -o extended_l2=on,cluster_size=4k --size 3
measure -O qcow2 -o refcount_bits=3 --size 1G
measure -O qcow2 -o preallocation=foo --size 1G
measure -O qcow2 -o compat=3 --size 1G
measure -O qcow2 -o compat=0.10,refcount_bits=8 --size 1
measure -O qcow2 -o compat=x,refcount_bits=3 --size 1
measure -O qcow2 -o encrypt.format=luks --size 1
measure -O qcow2 --size 4E
measure -O foo o.q
measure -O foo --size 1
measure -O foo nope
measure -O qcow2 -o foo=1 nope
measure -l zz -O foo o.q
measure -f foo o.q
measure nope
measure miss.q
`

const COMPARE = `
compare o.q o.raw
compare o.q base.q
compare base.q o.q
compare -s o.q base.q
compare -s o.q o.raw
compare -s o.raw o.raw
compare -s o.q o.q
compare -f raw o.q o.raw
compare -F foo o.q o.raw
compare -q o.q base.q
compare -q o.q o.raw
compare empty.raw o.q
compare zero empty.raw
compare empty.raw zero
compare -s zero empty.raw
compare zstd.q o.raw
compare -U -T none c.q zstd.q
compare o.q c.q
compare v2.q empty.raw
compare v2.q ext.q
compare nope o.q
compare o.q nope
compare miss.q o.q
compare o.q miss2.q
compare feature.q v3.q
compare --a-format=qcow2 --right-format=raw o.q o.raw
`

const CREATE = `
create -f qcow2 x 1M
create x 1M
create x 1M -f qcow2
create -qf qcow2 x 1M
create -fqcow2 x 1M --quiet
create x 0
create x 1.5k
create x .5k
create x 1.M
create x 0x10
create x ' 5'
create x +5
create x 1.7G
create -f qcow2 x 1234
create -f qcow2 x 20T
create -f qcow2 -o size=1M x
create -f qcow2 -o size=1M -o cluster_size=4k x
create -f qcow2 -o cluster_size=512 x 1G
create -f qcow2 -o cluster_size=2M x 1G
create -f qcow2 -o compat=0.10 x 1M
create -f qcow2 -o compat=v3,lazy_refcounts x 1M
create -f qcow2 -o nolazy_refcounts x 1M
create -f qcow2 -o lazy_refcounts=true x 1M
create -f qcow2 -o refcount_bits=1 x 1M
create -f qcow2 -o refcount_bits=020 x 1M
create -f qcow2 -o extended_l2=on x 1M
create -f qcow2 -o compression_type=zstd x 1M
create -f qcow2 -o preallocation=metadata x 10M
create -f qcow2 -o preallocation=falloc x 1M
create -f qcow2 -o preallocation=full x 1M
create -f qcow2 -o preallocation=off x 1M
create -f qcow2 -o nocow=on x 1M
create -o preallocation=full x 1M
create -f qcow2 -o data_file=xd x 1M
create -f qcow2 -o data_file=xd,data_file_raw=on x 1M
create -f qcow2 -b base.q -F qcow2 x
create -f qcow2 -b base.q -F qcow2 x 5M
create -f qcow2 -b o.q -F qcow2 -o cluster_size=4k x
create -f qcow2 -b o.raw -F raw x
create -f qcow2 -b o.q -F raw x
create -f qcow2 -o backing_file=base.q,backing_fmt=qcow2 x
create -f qcow2 -o backing_file=base.q -b o.q -F qcow2 x
create -f qcow2 -F qcow2 -o backing_file=base.q x
create -f qcow2 -b ../base.q -F qcow2 sub/x
create -u -f qcow2 -b nope -F raw x 1M
create -u -f qcow2 -o backing_file=a,,b,backing_fmt=raw x 1M
create -f qcow2 -b nope -F qcow2 x
create -f qcow2 -b nope x
create -f qcow2 -b nope x 1M
create -f qcow2 -u -b nope x
create -u -f qcow2 -b nope x 1M
create -u -f qcow2 -F foo -b base.q x 1M
create -u -f qcow2 -F foo -b base.q x
create -u -f qcow2 -F qcow2 -b base.q x
create -f qcow2 -b miss.q -F qcow2 x
create -f qcow2 -b miss2.q -F qcow2 x
create -f qcow2 -b txt x
create -f qcow2 -b base.q x
create -f qcow2 -b base.q x 1M
create -f qcow2 -b txt -F qcow2 x
create -f qcow2 -b txt -F foo x
create -f qcow2 -F raw x 1M
create -f qcow2 -b x -F qcow2 x
create -f qcow2 -b '' -F qcow2 x 1M
create -f qcow2 nodir/x 1M
create -f qcow2 '' 1M
create -o preallocation=metadata x 1M
create -o preallocation=foo x 1M
create -f qcow2 -o encrypt.format=luks x 1M
create -f qcow2 -o encryption=on x 1M
create -f qcow2 -o encrypt.format=foo x 1M
create -f qcow2 -o encrypt.iter-time=5 x 1M
create -f qcow2 -o cluster_size=512 x 1T
create -f qcow2 x 6E
create -f qcow2 -o compat x 1M
create -f qcow2 -b df.q -F qcow2 x
create -f qcow2 -b nodata.q -F qcow2 x
`

const CONVERT = `
convert o.q x
convert -O raw o.q x
convert -O qcow2 o.q x
convert -f qcow2 -O qcow2 -c o.q x
convert -c -O qcow2 -o compression_type=zstd o.raw x
convert -O qcow2 -o cluster_size=4k,compat=0.10 o.raw x
convert -O qcow2 -o extended_l2=on c.q x
convert -O qcow2 -o size=3M o.q x
convert -S 0 o.q x
convert -S 64k -m 3 -W o.q x
convert -f raw -O qcow2 o.q x
convert -U -T none -t directsync o.q x
convert -C o.q x
convert -q o.q x
convert -q -p o.q x
convert -r 1G o.q x
convert -l s1 o.q x
convert -l 2 o.q x
convert -l 'second one' o.q x
convert -l snapshot.name=s1 o.q x
convert -l snapshot.id=1 -O qcow2 o.q x
convert -l s2 o.q x
convert -l snapshot.name=zz o.q x
convert -l snapshot.id=1,snapshot.name=zz o.q x
convert -l s1 o.raw x
convert -l s1 o.q o.q x
convert o.q base.q x
convert -O qcow2 o.raw o.q zstd.q x
convert zero x
convert -O qcow2 zero x
convert df.q x
convert -O qcow2 -B base.q -F qcow2 o.q x
convert -O qcow2 -o backing_file=base.q,backing_fmt=qcow2 o.q x
convert -O qcow2 -B base.q -F qcow2 -c o.raw x
convert --bitmaps -O qcow2 o.q x
convert -O qcow2 -o preallocation=metadata o.q x
convert -O qcow2 -o preallocation=full o.q x
convert -o preallocation=falloc o.q x
convert -O qcow2 -o data_file=xd o.q x
convert file:o.q file:x
convert -n o.q nope
convert -n o.q empty.raw
convert -n --target-is-zero o.q empty.raw
convert o.q nodir/x
convert -O qcow2 o.q nodir/x
convert -O foo o.q x
convert -O foo nope x
convert -f foo o.q x
convert -O qcow2 -o foo=1 o.q x
convert -c o.q x
convert -c -O qcow2 -o preallocation=full o.q x
convert -B base.q o.q x
convert -F raw o.q x
convert -O qcow2 -B base.q o.q x
convert -O qcow2 -B nope -F qcow2 o.q x
convert -O qcow2 -B base.q -F foo o.q x
convert -O raw -B base.q -F qcow2 o.q x
convert -O qcow2 -B base.q -F qcow2 o.q o.q x
convert -O qcow2 -F qcow2 o.q x
convert -o backing_file=base.q -O qcow2 o.q x
convert --bitmaps o.q x
convert --bitmaps nope x
convert o.q o.q
convert base.q o.q base.q
convert -O qcow2 o.q base.q
convert nope x
convert o.q nope x
convert miss.q x
convert miss2.q x
convert loopless.q x
convert nodata.q x
convert dir x
convert a:b x
convert -t foo -O bar o.q x
convert -t foo -O qcow2 -c -o foo=1 o.q x
convert -t foo -T bar nope x
convert -c -O raw -t foo -B base.q o.q x
convert -l zz -O foo o.q x
convert -O qcow2 -o encrypt.format=luks o.q x
convert -o preallocation=metadata o.q x
convert -O qcow2 -o backing_fmt=qcow2 o.q x
convert -O qcow2 -o extended_l2=on,cluster_size=4k o.q x
convert -O qcow2 -o cluster_size=3 o.q x
convert feature.q x
convert short.q x
convert -p nope x
convert -p -O foo o.q x
convert -p -o foo=1 o.q x
convert -p -l zz o.q x
convert -p -T foo o.q x
dd if=o.q of=x
dd -O qcow2 if=o.q of=x
dd -f raw if=o.q of=x
dd bs=1 count=3 if=o.q of=x
dd bs=64k skip=8 count=1 if=o.q of=x
dd bs=1k bs=2k if=o.q if=base.q of=x
dd if=o.q of=x bs=512 skip=4095
dd if=o.q of=x skip=5000
dd if=o.q of=x skip=5000 count=1 -O qcow2
dd if=o.q of=x count=0
dd if=o.q of=x bs=1000 count=1 skip=1
dd if=nope of=x
dd if=miss.q of=x
dd -O foo if=o.q of=x
dd if=o.q of=nodir/x
dd -f foo if=o.q of=x
dd if= of=x
dd if=o.q of=
dd if=o.q of=o.q
`

/** Contradictions two by two: which of them is told is part of the interface. */
const FAULTS = [
  'cluster_size=3',
  'compat=3',
  'preallocation=foo',
  'compression_type=foo',
  'refcount_bits=3',
  'compat=v2,refcount_bits=8',
  'compat=v2,lazy_refcounts=on',
  'compat=v2,extended_l2=on',
  'extended_l2=on,cluster_size=4k',
  'data_file_raw=on',
  'compat=v2,data_file=xd',
  'compat=v2,compression_type=zstd',
  'backing_fmt=raw',
  'backing_file=y,backing_fmt=raw,preallocation=metadata',
  'backing_file=y,backing_fmt=raw,data_file=xd,data_file_raw=on',
  'backing_file=y,backing_fmt=foo',
  'backing_file=y',
  'encrypt.format=luks',
  'encrypt.format=foo',
  'encryption=on',
  'encrypt.iter-time=3',
  'foo=1',
]

/** The option lists of all contradictions, two by two. */
export function contradictions(): string[] {
  const out: string[] = []
  for (const [index, first] of FAULTS.entries()) {
    for (const second of FAULTS.slice(index + 1)) {
      // The value that counts is the last: a fault must not be overwritten by the other.
      const keys = (list: string) => list.split(',').map((option) => option.split('=')[0] ?? '')
      if (keys(first).some((key) => keys(second).includes(key))) continue
      out.push(`${first},${second}`)
    }
  }
  return out
}

/** The groups, each of them a test. */
export const CASES: Readonly<Record<string, readonly string[]>> = {
  program: PROGRAM.split('\n').slice(1, -1),
  usage: lines(USAGE),
  info: lines(INFO),
  snapshot: lines(SNAPSHOT),
  map: lines(MAP),
  check: lines(CHECK),
  measure: lines(MEASURE),
  compare: lines(COMPARE),
  create: lines(CREATE),
  convert: lines(CONVERT),
}

function lines(text: string): string[] {
  return text.split('\n').filter((line) => line !== '')
}

/** Takes a line apart into words. */
export function wordsOf(line: string): string[] {
  const words: string[] = []
  for (const match of line.matchAll(/'([^']*)'|(\S+)/g)) words.push(match[1] ?? match[2] ?? '')
  return words
}
