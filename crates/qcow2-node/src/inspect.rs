//! What a file looks like, before anything of it is believed.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::{Error, Survey};
use qcow2_format::HostOffset;
use qcow2_format::features::NAMES;
use qcow2_format::foreign::{BootSector, Descriptor, HEAD, RawHeader, TAIL, Vmdk, is_fixed_vhd, recognise};

use crate::call::accept;
use crate::handles::Handle;
use crate::outbox::{CallId, Outcome};
use crate::pool::Lane;
use crate::source::SourceSpec;

/// What the first and the last bytes of a file say.
#[napi(object, object_from_js = false)]
pub struct HeadFacts {
    /// All formats that they look like.
    pub formats: Vec<String>,
    /// Length of the file in bytes.
    pub length: BigInt,
    /// The fixed fields of a qcow2 header, as they stand there.
    pub header: Option<HeaderFacts>,
    /// The first sector, if it is signed as a boot sector.
    pub boot_sector: Option<BootSectorFacts>,
    /// It is a VHD by its last sector alone.
    pub fixed_vhd: bool,
    /// The descriptor of a VMDK.
    pub vmdk: Option<VmdkFacts>,
    /// The device that it is on.
    pub device: Option<BigInt>,
    /// Its number there.
    pub inode: Option<BigInt>,
}

/// See [`BootSector`].
#[napi(object, object_from_js = false)]
pub struct BootSectorFacts {
    /// The begin of a FAT file system.
    pub fat: bool,
    /// Why its table of partitions is none.
    pub fault: Option<String>,
}

/// See [`Vmdk`].
#[napi(object, object_from_js = false)]
pub struct VmdkFacts {
    /// How the disk is stored.
    pub create_type: Option<String>,
    /// The lines that name files.
    pub extents: Vec<String>,
    /// What is wrong.
    pub fault: Option<String>,
    /// The file ends before its descriptor does.
    pub cut: bool,
    /// The last bytes of the file decide, too.
    pub in_footer: bool,
}

/// See [`RawHeader`].
#[napi(object, object_from_js = false)]
pub struct HeaderFacts {
    /// Version.
    pub version: u32,
    /// Where the name of the backing file stands.
    pub backing_offset: BigInt,
    /// Incompatible features.
    pub incompatible: BigInt,
    /// What stands at byte 72, in any version.
    pub at_72: BigInt,
    /// All features that are set.
    pub features: Vec<FeatureFacts>,
}

/// A feature bit that is set.
#[napi(object, object_from_js = false)]
pub struct FeatureFacts {
    /// `incompatible`, `compatible` or `autoclear`.
    #[napi(ts_type = "'incompatible' | 'compatible' | 'autoclear'")]
    pub kind: String,
    /// Its number.
    pub bit: u32,
    /// Its name; absent for one that is not known here.
    pub name: Option<String>,
}

/// Tells what a file looks like: nothing is judged, and nothing that it names is opened. `complete`: its last bytes are the last ones. Completes with its
/// facts.
#[napi(catch_unwind)]
pub fn inspect_head(env: Env, id: CallId, source: SourceSpec, complete: bool) -> napi::Result<()> {
    accept(&env, id, |call| {
        let source = source.accept(call)?;
        call.run(Lane::Short, move |_| {
            let storage = source.open()?;
            let failed = |operation| Error::io(operation, &*storage);
            let length = storage.length().map_err(failed("fstat"))?;
            let read = |at: u64, most: usize| {
                let mut bytes = vec![0; most];
                let count = storage.read_at(HostOffset(at), &mut bytes).map_err(failed("read"))?;
                bytes.truncate(count);
                Ok::<_, Error>(bytes)
            };
            let head = read(0, HEAD)?;
            let tail = if complete {
                read(length.saturating_sub(TAIL as u64), TAIL)?
            } else {
                Vec::new()
            };
            let identity = storage.identity();
            let formats = recognise(&head, &tail).into_iter().map(str::to_owned).collect();
            let header = RawHeader::read(&head);
            let by_footer = is_fixed_vhd(&tail) && !recognise(&head, &[]).contains(&"vhd");
            let vmdk = match Descriptor::find(&head) {
                None => None,
                Some(Err(fault)) => Some((Vmdk::faulty(fault), false)),
                Some(Ok(place)) => {
                    let bytes = read(place.offset, place.length)?;
                    Some((Vmdk::read(&place, &bytes, &head, &tail), place.in_footer))
                }
            };
            drop(storage);
            Outcome::value(move |_, _, values| {
                values.add(HeadFacts {
                    formats,
                    length: length.into(),
                    header: header.map(|header| HeaderFacts::of(&header)),
                    boot_sector: BootSector::read(&head).map(|sector| BootSectorFacts {
                        fat: sector.fat,
                        fault: sector.fault.map(str::to_owned),
                    }),
                    fixed_vhd: by_footer,
                    device: identity.map(|identity| identity.device.into()),
                    inode: identity.map(|identity| identity.inode.into()),
                    vmdk: vmdk.map(|(found, in_footer)| VmdkFacts {
                        create_type: found.create_type,
                        extents: found.extents,
                        fault: found.fault.map(str::to_owned),
                        cut: found.cut,
                        in_footer,
                    }),
                })
            })
        })
    })
}

/// See [`Survey`].
#[napi(object, object_from_js = false)]
pub struct SurveyFacts {
    /// Some cluster is compressed.
    pub compressed: bool,
    /// The first guest offset whose data lies behind the end of its file.
    pub missing_guest: Option<BigInt>,
    /// Its place there.
    pub missing_host: Option<BigInt>,
    /// All of the disk was looked at.
    pub complete: bool,
}

/// Walks through the mappings of a disk, for `most` of them at most. Completes with what they tell.
#[napi(catch_unwind)]
pub fn survey(env: Env, id: CallId, chain: Handle, most: u32) -> napi::Result<()> {
    accept(&env, id, |call| {
        let chain = call.chain(chain)?;
        call.run(Lane::Long, move |job| {
            let Survey {
                compressed,
                missing,
                complete,
            } = chain.survey(u64::from(most), &job.cancel)?;
            // What the job held is let go before its end is told.
            drop(chain);
            Outcome::value(move |_, _, values| {
                values.add(SurveyFacts {
                    compressed,
                    missing_guest: missing.map(|(guest, _)| guest.0.into()),
                    missing_host: missing.map(|(_, host)| host.0.into()),
                    complete,
                })
            })
        })
    })
}

impl HeaderFacts {
    fn of(header: &RawHeader) -> Self {
        let kinds = [
            ("incompatible", 0, header.incompatible),
            ("compatible", 1, header.compatible),
            ("autoclear", 2, header.autoclear),
        ];
        let set = kinds.into_iter().flat_map(|(kind, number, bits)| {
            (0..64u8)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| FeatureFacts {
                    kind: kind.to_owned(),
                    bit: u32::from(bit),
                    name: NAMES
                        .iter()
                        .find(|known| (known.0, known.1) == (number, bit))
                        .map(|known| known.2.to_owned()),
                })
        });
        Self {
            version: header.version,
            backing_offset: header.backing_offset.into(),
            incompatible: header.incompatible.into(),
            at_72: header.at_72.into(),
            features: set.collect(),
        }
    }
}
