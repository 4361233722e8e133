//! What a file looks like, before anything of it is believed.

use napi::Env;
use napi::bindgen_prelude::BigInt;
use qcow2_engine::Error;
use qcow2_format::HostOffset;
use qcow2_format::features::NAMES;
use qcow2_format::foreign::{HEAD, RawHeader, TAIL, recognise};

use crate::call::accept;
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

/// Tells what a file looks like: nothing is judged, and nothing that it names is opened. Completes with its facts.
#[napi(catch_unwind)]
pub fn inspect_head(env: Env, id: CallId, source: SourceSpec) -> napi::Result<()> {
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
            let tail = read(length.saturating_sub(TAIL as u64), TAIL)?;
            let formats = recognise(&head, &tail).into_iter().map(str::to_owned).collect();
            let header = RawHeader::read(&head);
            drop(storage);
            Outcome::value(move |_, _, values| {
                values.add(HeadFacts {
                    formats,
                    length: length.into(),
                    header: header.map(|header| HeaderFacts::of(&header)),
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
            features: set.collect(),
        }
    }
}
