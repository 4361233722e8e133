/**
 * What destinations accept: a table. Nothing here decides anything; `judge.ts` knows the predicates.
 *
 * Rules are those that the destinations' own documentation or source states, as of November 2026. One that could not be confirmed warns.
 */

import type { ProfileName } from './inspect-types.js'
import type { Profile, Rule } from './profile-types.js'

const GB = 1e9

const GLANCE = 'oslo.utils imageutils/format_inspector.py'
const noBacking = (code: string, who: string, source: string): Rule => ({
  code,
  must: { is: 'noBackingFile' },
  severity: 'error',
  message: `${who} refuses a backing file`,
  source,
  mend: 'converting copies what the backing file has',
})

/** Nobody who is given the table changes what everybody is judged by. */
function frozen<T extends object>(table: T): T {
  for (const part of Object.values(table)) if (typeof part === 'object' && part !== null) frozen(part)
  return Object.freeze(table)
}

export const PROFILES: Readonly<Record<ProfileName, Profile>> = frozen({
  glance: {
    summary: 'OpenStack: images that pass its format inspector',
    make: { format: 'qcow2', compat: '1.1', plain: true },
    rules: [
      {
        code: 'GLANCE_SEVERAL_FORMATS',
        must: {
          is: 'atMostOneMark',
          marks: {
            ...{ qcow2: 512, qcow: 512, vdi: 512, vhd: 8, vhdx: 8, qed: 512, vmdk: 4, luks: 6, iso: 34 << 10, udf: 34 << 10 },
            'boot sector': 512,
          },
        },
        severity: 'error',
        message: 'glance refuses a file in which it sees several formats',
        source: GLANCE,
        mend: 'converting makes a file of one format',
      },
      {
        code: 'GLANCE_FORMAT',
        must: { is: 'formatNotIn', formats: ['qed'] },
        severity: 'error',
        message: 'glance refuses QED',
        source: GLANCE,
      },
      {
        code: 'GLANCE_HEADER',
        must: { is: 'headIsWhole', bytes: { qcow2: 512, qcow: 512, vhd: 512, vhdx: 256 << 10, vmdk: 64, luks: 592 } },
        severity: 'error',
        message: 'glance cannot check an incomplete header',
        source: GLANCE,
      },
      {
        code: 'GLANCE_PARTITIONS',
        must: { is: 'partitionsAreSound' },
        severity: 'error',
        message:
          'glance refuses a boot sector (AA55h at byte 510, not of FAT) without partitions, or with a GPT whose protective entry is not alone at sector 1',
        source: GLANCE,
      },
      {
        code: 'GLANCE_VMDK_DESCRIPTOR',
        must: { is: 'descriptorIsSound' },
        severity: 'error',
        message: 'glance refuses a VMDK whose descriptor it does not understand',
        source: GLANCE,
      },
      {
        code: 'GLANCE_VMDK_TYPE',
        must: { is: 'createTypeIn', types: ['monolithicsparse', 'streamoptimized'] },
        severity: 'error',
        message: 'glance takes VMDK of the types monolithicSparse and streamOptimized',
        source: GLANCE,
      },
      {
        code: 'GLANCE_VMDK_EXTENTS',
        must: { is: 'extentsArePlain' },
        severity: 'error',
        message: 'glance refuses a VMDK without extents, or with one that names a path',
        source: GLANCE,
      },
      {
        ...noBacking('GLANCE_BACKING_FILE', 'glance', GLANCE),
        message: 'glance refuses a backing file (header bytes 8 to 15 are not zero)',
      },
      {
        code: 'GLANCE_DATA_FILE',
        must: { is: 'noDataFile' },
        severity: 'error',
        message: 'glance refuses an external data file (incompatible bit 2)',
        source: GLANCE,
        mend: 'converting puts the data into the image',
      },
      {
        code: 'GLANCE_VERSION',
        must: { is: 'versionIn', versions: [2, 3] },
        severity: 'error',
        message: 'glance knows versions 2 and 3 of qcow2',
        source: GLANCE,
      },
      {
        code: 'GLANCE_UNKNOWN_FEATURES',
        must: { is: 'noIncompatibleAbove', bit: 3 },
        severity: 'error',
        message: 'glance refuses incompatible features above bit 3, such as extended L2 (bit 4)',
        source: GLANCE,
        mend: 'converting makes an image without extended L2',
      },
    ],
  },
  kubevirt: {
    summary: 'KubeVirt: a disk in a container image',
    make: { format: 'qcow2', compat: '1.1' },
    notes: [
      {
        code: 'KUBEVIRT_IMAGE_LAYER',
        message: 'exactly one file in /disk of the container image, owned by 107:107',
        source: 'kubevirt container-disk.go',
      },
    ],
    rules: [
      {
        code: 'KUBEVIRT_FORMAT',
        must: { is: 'formatIn', formats: ['raw', 'qcow2'] },
        severity: 'error',
        message: 'KubeVirt takes raw and qcow2',
        source: 'kubevirt pkg/os/disk/validation.go',
      },
      noBacking('KUBEVIRT_BACKING_FILE', 'KubeVirt', 'kubevirt pkg/os/disk/validation.go'),
    ],
  },
  ovirt: {
    summary: 'oVirt: uploads through imageio',
    make: { format: 'qcow2', compat: '1.1', clusterSize: 65536 },
    notes: [{ code: 'OVIRT_INITIAL_SIZE', message: 'initial_size: {required}', source: 'ovirt-imageio qemu_img.py' }],
    rules: [
      {
        code: 'OVIRT_FORMAT',
        must: { is: 'formatIn', formats: ['raw', 'qcow2'] },
        severity: 'error',
        message: 'oVirt takes raw and qcow2',
        source: 'ovirt-imageio qemu_img.py',
      },
      {
        code: 'OVIRT_BACKING_NAME',
        must: { is: 'backingNameIsPlain' },
        severity: 'error',
        message: 'oVirt refuses a backing file with an absolute path or a protocol',
        source: 'ovirt-imageio qemu_img.py',
        mend: 'rebase names the backing file relative to its overlay; converting leaves none',
      },
    ],
  },
  digitalocean: {
    summary: 'DigitalOcean: custom images',
    make: { format: 'qcow2', compat: '1.1' },
    notes: [
      {
        code: 'DIGITALOCEAN_GUEST',
        message: 'the guest needs ext3 or ext4, MBR or GPT, and cloud-init: what is in the disk was not looked at',
        source: 'DigitalOcean documentation, custom images',
      },
    ],
    rules: [
      {
        code: 'DIGITALOCEAN_FORMAT',
        must: { is: 'formatIn', formats: ['raw', 'qcow2', 'vhdx', 'vdi', 'vmdk', 'gzip', 'bzip2'] },
        severity: 'error',
        message: 'DigitalOcean takes raw, qcow2, VHDX, VDI and VMDK, plain or as gzip or bzip2',
        source: 'DigitalOcean documentation, custom images',
      },
      {
        code: 'DIGITALOCEAN_SIZE',
        must: { is: 'virtualSizeBelow', bytes: 100 * GB },
        severity: 'error',
        message: 'DigitalOcean refuses disks of 100 GB and more',
        source: 'DigitalOcean documentation, custom images, limits',
      },
    ],
  },
  linode: {
    summary: 'Linode: image uploads',
    make: { format: 'raw', gzip: true },
    rules: [
      {
        code: 'LINODE_FORMAT',
        must: { is: 'formatIn', formats: ['gzip'] },
        severity: 'error',
        message: 'Linode takes raw disks compressed with gzip',
        source: 'Linode API v4, images upload',
        mend: 'converting makes raw in gzip',
      },
      {
        code: 'LINODE_FILE_SIZE',
        must: { is: 'fileSizeAtMost', format: 'gzip', bytes: 5 * GB },
        severity: 'error',
        message: 'Linode takes at most 5 GB of compressed file',
        source: 'Linode API v4, images upload',
      },
      {
        code: 'LINODE_SIZE',
        must: { is: 'virtualSizeBelow', bytes: 6 * GB + 1 },
        severity: 'warning',
        message: 'Linode may refuse disks of more than 6 GB',
        source: 'Linode API v4, images upload',
      },
    ],
  },
  ec2: {
    summary: 'Amazon EC2: VM Import',
    make: { format: 'raw' },
    rules: [
      {
        code: 'EC2_FORMAT',
        must: { is: 'formatIn', formats: ['raw', 'vmdk', 'vhd', 'vhdx', 'tar'] },
        severity: 'warning',
        message: 'VM Import takes raw, VMDK, VHD, VHDX and OVA, not qcow2',
        source: 'VM Import/Export user guide',
        mend: 'converting makes raw',
      },
    ],
  },
  netbackup: {
    summary: 'NetBackup: KVM agent',
    make: { format: 'qcow2', compat: '1.1', plain: true },
    rules: [
      {
        code: 'NETBACKUP_FORMAT',
        must: { is: 'formatIn', formats: ['qcow2'] },
        severity: 'error',
        message: 'the agent takes qcow2',
        source: 'NetBackup 11.2 documentation, KVM',
      },
      {
        code: 'NETBACKUP_VERSION',
        must: { is: 'versionIn', versions: [3] },
        severity: 'error',
        message: 'the agent takes version 3 (compat 1.1)',
        source: 'NetBackup 11.2 documentation, KVM',
        mend: 'amend with compat 1.1, or converting, makes version 3',
      },
      {
        code: 'NETBACKUP_COMPRESSED',
        must: { is: 'notCompressed' },
        severity: 'error',
        message: 'the agent refuses compressed clusters',
        source: 'NetBackup 11.2 documentation, KVM',
        mend: 'converting decompresses',
      },
      {
        code: 'NETBACKUP_ENCRYPTED',
        must: { is: 'notEncrypted' },
        severity: 'error',
        message: 'the agent refuses encryption',
        source: 'NetBackup 11.2 documentation, KVM',
        mend: 'converting with the secret decrypts',
      },
    ],
  },
  'vagrant-libvirt': {
    summary: 'Vagrant with libvirt: box.img of a box',
    make: { format: 'qcow2', compat: '1.1' },
    notes: [
      {
        code: 'VAGRANT_METADATA',
        message: 'metadata.json: {"provider": "libvirt", "format": "qcow2", "virtual_size": {gibibytes}}',
        source: 'vagrant-libvirt docs/boxes.markdown',
      },
    ],
    rules: [
      {
        code: 'VAGRANT_FORMAT',
        must: { is: 'formatIn', formats: ['qcow2'] },
        severity: 'error',
        message: 'box.img is qcow2',
        source: 'vagrant-libvirt docs/boxes.markdown',
      },
      noBacking('VAGRANT_BACKING_FILE', 'vagrant-libvirt', 'vagrant-libvirt tools/create_box.sh'),
    ],
  },
  firecracker: {
    summary: 'Firecracker: drives',
    make: { format: 'raw' },
    rules: [
      {
        code: 'FIRECRACKER_FORMAT',
        must: { is: 'formatIn', formats: ['raw'] },
        severity: 'error',
        message: 'Firecracker reads raw drives alone',
        source: 'Firecracker documentation, block devices',
        mend: 'converting makes raw, with holes for zeros',
      },
      {
        code: 'FIRECRACKER_SECTORS',
        must: { is: 'virtualSizeMultipleOf', bytes: 512 },
        severity: 'error',
        message: 'Firecracker needs whole sectors of 512 bytes',
        source: 'Firecracker documentation, block devices',
        mend: 'converting pads with zeros',
      },
    ],
  },
  kata: {
    summary: 'Kata Containers: guest image',
    make: { format: 'raw' },
    rules: [
      {
        code: 'KATA_FORMAT',
        must: { is: 'formatIn', formats: ['raw'] },
        severity: 'error',
        message: 'Kata maps a raw guest image',
        source: 'kata-containers runtime #843',
        mend: 'converting makes raw',
      },
      {
        code: 'KATA_ALIGNMENT',
        must: { is: 'virtualSizeMultipleOf', bytes: 128 * 2 ** 20 },
        severity: 'warning',
        message: 'Kata may need a size that is a multiple of 128 MiB',
        source: 'kata-containers runtime #843',
        mend: 'resize it before or after converting',
      },
    ],
  },
  proxmox: {
    summary: 'Proxmox VE: importdisk',
    make: { format: 'qcow2', compat: '1.1' },
    notes: [{ code: 'PROXMOX_REQUIRED_SIZE', message: 'a volume of {required} bytes holds it as qcow2', source: 'PVE 9 volume chains' }],
    rules: [
      {
        code: 'PROXMOX_FORMAT',
        must: { is: 'formatIn', formats: ['raw', 'qcow2'] },
        severity: 'error',
        message: 'Proxmox takes raw and qcow2',
        source: 'qm importdisk',
      },
    ],
  },
  hetzner: {
    summary: 'Hetzner Cloud: hcloud-upload-image',
    make: { format: 'raw' },
    notes: [
      {
        code: 'HETZNER_STREAM',
        message: 'raw may be sent through xz or zstd',
        source: 'hcloud-upload-image PR 69',
      },
    ],
    rules: [
      {
        code: 'HETZNER_FORMAT',
        must: { is: 'formatIn', formats: ['raw', 'qcow2', 'xz', 'zstd', 'bzip2'] },
        severity: 'error',
        message: 'hcloud-upload-image takes qcow2, and raw, plain or as xz, zstd or bzip2',
        source: 'hcloud-upload-image PR 69',
      },
      {
        code: 'HETZNER_QCOW2_SIZE',
        must: { is: 'fileSizeAtMost', format: 'qcow2', bytes: 960e6 },
        severity: 'error',
        message: 'hcloud-upload-image takes qcow2 files up to 960 MB',
        source: 'hcloud-upload-image PR 69',
        mend: 'converting makes raw, which is streamed',
      },
    ],
  },
  dedup: {
    summary: 'Backups that find equal blocks (restic, borg, file servers)',
    make: { format: 'qcow2', compat: '1.1', clusterSize: 65536, plain: true },
    rules: [
      {
        code: 'DEDUP_COMPRESSED',
        must: { is: 'notCompressed' },
        severity: 'error',
        message: 'equal data is not equal bytes once it is compressed',
        source: 'docs/inspect.md',
        mend: 'converting decompresses',
      },
      {
        code: 'DEDUP_ENCRYPTED',
        must: { is: 'notEncrypted' },
        severity: 'error',
        message: 'equal data is not equal bytes once it is encrypted',
        source: 'docs/inspect.md',
        mend: 'converting with the secret decrypts',
      },
      {
        code: 'DEDUP_CLUSTER_SIZE',
        must: { is: 'clusterSizeAtLeast', bytes: 65536 },
        severity: 'error',
        message: 'clusters of less than 64 KiB shift data by less than a block of the backup',
        source: 'docs/inspect.md',
        mend: 'converting makes clusters of 64 KiB',
      },
    ],
  },
})

/** All names, in the order of the table. */
export const PROFILE_NAMES = Object.keys(PROFILES) as ProfileName[]
