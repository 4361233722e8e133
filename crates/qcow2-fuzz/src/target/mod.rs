//! What is asked of a damaged image, and what must hold whatever it is.

mod written;

use std::collections::BTreeSet;
use std::sync::Arc;

use qcow2_engine::{
    Chain, ChainOptions, CheckOptions, CheckReport, Error, JobContext, Layer, LayerOptions, Limits, Secret, check,
};
use qcow2_format::bitmap::parse_directory;
use qcow2_format::luks::LuksHeader;
use qcow2_format::snapshot::{encode_snapshot_table, parse_snapshot_table};
use qcow2_format::{Extensions, GuestOffset, Header, HostOffset};

use crate::capped::Capped;
use crate::places::number;
use crate::random::Random;

/// The parts of the engine that are asked.
pub const TARGETS: [&str; 8] = [
    "header",
    "read",
    "check",
    "snapshots",
    "bitmaps",
    "repair",
    "operations",
    "luks",
];

/// Most guest bytes that are looked at.
const WINDOW: u64 = 1 << 20;

/// What came of an input: codes and findings, the mark by which a new behaviour is known.
pub type Behaviour = BTreeSet<String>;

type Outcome = Result<(), Error>;

/// Asks `target` of an image.
///
/// # Errors
/// A sentence that says what must not be.
pub fn run(target: &str, bytes: &[u8], choices: u64) -> Result<Behaviour, String> {
    let mut asked = Asked {
        bytes,
        random: Random::new(choices),
        seen: Behaviour::new(),
        wrong: None,
    };
    let outcome = match target {
        "header" => asked.header(),
        "read" => asked.read(),
        "check" => asked.check(),
        "snapshots" => asked.snapshots(),
        "bitmaps" => asked.bitmaps(),
        "repair" => asked.repair(),
        "operations" => asked.operations(),
        "luks" => asked.luks(),
        _ => panic!("there is no target {target}: {TARGETS:?}"),
    };
    if let Err(error) = outcome {
        asked.error(&error);
    }
    match asked.wrong {
        Some(wrong) => Err(wrong),
        None => Ok(asked.seen),
    }
}

struct Asked<'a> {
    bytes: &'a [u8],
    random: Random,
    seen: Behaviour,
    wrong: Option<String>,
}

fn limits() -> Limits {
    Limits {
        max_memory: 64 << 20,
        ..Limits::default()
    }
}

fn chain(layer: Layer, snapshot: Option<&str>) -> Result<Chain, Error> {
    let options = ChainOptions {
        without_backing: true,
        snapshot: snapshot.map(Into::into),
        ..ChainOptions::default()
    };
    Chain::new(vec![layer], options)
}

impl Asked<'_> {
    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    fn error(&mut self, error: &Error) {
        let code = error.code();
        if code == "ERR_QCOW2_INTERNAL" || !code.starts_with("ERR_QCOW2_") {
            self.wrong(format!("{code}: {error}"));
        }
        self.seen.insert(code.to_owned());
    }

    /// A LUKS header, with nothing but zeros where its slots say that their material is: no password opens that.
    fn luks(&mut self) -> Outcome {
        if let Ok(header) = LuksHeader::parse(self.bytes, 0, u64::MAX) {
            // What was read can be written and read again, and is the same.
            match LuksHeader::parse(&header.encode(), 0, u64::MAX) {
                Ok(again) if again == header => {}
                other => self.wrong(format!("a LUKS header that is written reads as {other:?}")),
            }
        }
        let mut bytes = self.bytes.to_vec();
        bytes.resize(bytes.len().max(600 << 10), 0);
        let limits = Limits {
            max_key_iterations: 20_000,
            ..limits()
        };
        let options = LayerOptions {
            limits,
            ..LayerOptions::default()
        };
        let mut layer = Layer::open_luks(Arc::new(Capped::new(bytes)), None, &options)?;
        let secret = Secret::new(b"password".to_vec());
        match layer.unlock(&secret, false, &JobContext::quiet()) {
            Ok(()) => self.wrong("zeros were taken for a key".into()),
            Err(error) => self.error(&error),
        }
        Ok(())
    }

    fn layer(&self) -> Result<Layer, Error> {
        let options = LayerOptions {
            limits: limits(),
            ..LayerOptions::default()
        };
        Layer::open_qcow2(Arc::new(Capped::new(self.bytes.to_vec())), &options)
    }

    fn header(&mut self) -> Outcome {
        match Header::parse(self.bytes) {
            Err(error) => drop(
                self.seen.insert(
                    format!("{error:?}")
                        .chars()
                        .take_while(|c| c.is_alphanumeric())
                        .collect(),
                ),
            ),
            Ok(header) => match Extensions::parse(self.bytes, &header) {
                Err(error) => {
                    let name: String = format!("{error:?}")
                        .chars()
                        .take_while(|c| c.is_alphanumeric())
                        .collect();
                    self.seen.insert(format!("extensions {name}"));
                }
                Ok(extensions) => {
                    // What was read can be written and read again, and is the same.
                    let mut again = header.clone();
                    if let Ok(bytes) = extensions.encode(&mut again) {
                        let mut whole = again.encode();
                        whole.extend(&bytes);
                        let cluster = header.geometry.cluster_size() as usize;
                        whole.resize(whole.len().max(cluster), 0);
                        if let Ok(reread) = Header::parse(&whole)
                            && (reread.l1_offset != header.l1_offset || reread.recorded_size != header.recorded_size)
                        {
                            self.wrong("a header that is written is another one".into());
                        }
                    }
                }
            },
        }
        drop(self.layer()?);
        Ok(())
    }

    /// Every cluster alone and all in one: the same bytes, or an error of the same clusters.
    fn read(&mut self) -> Outcome {
        let layer = self.layer()?;
        let chain = chain(layer, None)?;
        let end = chain.virtual_size().min(WINDOW);
        let cluster = chain.cluster_size().unwrap_or(512);
        let mut alone = Vec::new();
        let mut failed = false;
        let mut at = 0;
        while at < end {
            let mut bytes = vec![0xee; cluster.min(end - at) as usize];
            if let Err(error) = chain.read(GuestOffset(at), &mut bytes) {
                self.error(&error);
                failed = true;
            }
            alone.extend(bytes);
            at += cluster;
        }
        let mut whole = vec![0; end as usize];
        match chain.read(GuestOffset(0), &mut whole) {
            Ok(_) if failed => self.wrong("the whole reads, though a part of it does not".into()),
            Ok(_) if whole != alone => self.wrong("the whole reads as other bytes than its parts".into()),
            Err(_) if !failed => self.wrong("the whole does not read, though all its parts do".into()),
            Ok(_) | Err(_) => {}
        }
        let (mut at, mut steps) = (0, 0);
        while at < chain.virtual_size() && steps < 200 {
            let some = chain.status(GuestOffset(at), u64::MAX, 100)?;
            let last = some.last().map_or(at, |last| last.start.0 + last.length);
            if last <= at {
                self.wrong("a map that does not get ahead".into());
                break;
            }
            (at, steps) = (last, steps + 1);
        }
        Ok(())
    }

    fn judge(&mut self, report: &CheckReport) {
        for finding in &report.findings {
            self.seen.insert(format!("{:?}", finding.code));
        }
    }

    fn check(&mut self) -> Outcome {
        let options = LayerOptions {
            for_check: true,
            limits: limits(),
            ..LayerOptions::default()
        };
        let storage = Arc::new(Capped::new(self.bytes.to_vec()));
        let layer = Layer::open_qcow2(storage.clone(), &options)?;
        let first = check(&layer, &CheckOptions::default(), &JobContext::quiet())?;
        let again = check(&layer, &CheckOptions::default(), &JobContext::quiet())?;
        if (first.corruptions, first.leaks, first.check_errors) != (again.corruptions, again.leaks, again.check_errors)
        {
            self.wrong("two checks of one image differ".into());
        }
        if storage.to_vec() != self.bytes {
            self.wrong("a check changed the image".into());
        }
        self.judge(&first);
        Ok(())
    }

    fn snapshots(&mut self) -> Outcome {
        let count = number(self.bytes, 60, 4) as u32;
        let offset = HostOffset(number(self.bytes, 64, 8));
        let table = usize::try_from(offset.0)
            .ok()
            .and_then(|at| self.bytes.get(at..))
            .unwrap_or_default();
        if let Ok((snapshots, _)) = parse_snapshot_table(table, offset, count.min(70_000), true)
            && let Ok(bytes) = encode_snapshot_table(&snapshots, true)
        {
            match parse_snapshot_table(&bytes, offset, snapshots.len() as u32, true) {
                Ok((again, _)) if again == snapshots => {}
                other => self.wrong(format!("a snapshot table that is written reads as {other:?}")),
            }
        }
        let layer = self.layer()?;
        let ids: Vec<String> = layer
            .snapshots()
            .iter()
            .take(4)
            .map(|one| String::from_utf8_lossy(&one.id).into_owned())
            .collect();
        for id in ids {
            let outcome = self.layer().and_then(|layer| {
                let chain = chain(layer, Some(&id))?;
                let mut bytes = vec![0; chain.virtual_size().min(WINDOW) as usize];
                chain.read(GuestOffset(0), &mut bytes)
            });
            if let Err(error) = outcome {
                self.error(&error);
            }
        }
        Ok(())
    }

    fn bitmaps(&mut self) -> Outcome {
        if let Ok(header) = Header::parse(self.bytes)
            && let Ok(extensions) = Extensions::parse(self.bytes, &header)
            && let Some(bitmaps) = extensions.bitmaps
        {
            let at = usize::try_from(number(self.bytes, 0, 0)).unwrap_or(0);
            let _ = parse_directory(
                self.bytes.get(at..).unwrap_or_default(),
                HostOffset(0),
                bitmaps.count,
                header.geometry,
            );
        }
        let (disk, _) = self.disk()?;
        for bitmap in disk.bitmaps().into_iter().take(4) {
            if let Err(error) = disk.bitmap_dirty(&bitmap.name, GuestOffset(0), 1000) {
                self.error(&error);
            }
        }
        disk.write(GuestOffset(0), &[1; 512])?;
        disk.close()
    }
}
