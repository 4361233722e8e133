//! An image in memory, to be damaged byte by byte.

use std::sync::Arc;

use qcow2_engine::{Chain, ChainOptions, Error, Layer, LayerOptions, MemoryStorage, Result};
use qcow2_format::GuestOffset;

use super::{Folder, qemu_img, qemu_io};

/// An image as bytes that are changed before they are opened.
#[derive(Clone)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// A version 3 image of 1 MiB with 64 KiB clusters: four clusters of `0x5a` at guest offset 0, made by qemu.
    pub fn new(options: &str) -> Self {
        let folder = Folder::new();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend(["a.qcow2", "1M"]);
        qemu_img(&folder, &args);
        qemu_io(&folder, "a.qcow2", &["write -P 0x5a 0 256k".into()]);
        Self(std::fs::read(folder.path("a.qcow2")).unwrap())
    }

    pub fn put32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn put64(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn get64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// Where the first L1 entry stands.
    pub fn l1(&self) -> usize {
        self.get64(40) as usize
    }

    /// Where the first L2 entry stands.
    pub fn l2(&self) -> usize {
        (self.get64(self.l1()) & 0x00ff_ffff_ffff_fe00) as usize
    }

    pub fn open_with(&self, options: LayerOptions) -> Result<Layer> {
        Layer::open_qcow2(Arc::new(MemoryStorage::new(self.0.clone())), &options)
    }

    pub fn open(&self) -> Result<Layer> {
        self.open_with(LayerOptions::default())
    }

    pub fn chain(&self) -> Result<Chain> {
        Chain::new(vec![self.open()?], ChainOptions::default())
    }

    #[track_caller]
    pub fn refused(&self, code: &str) -> Error {
        let error = self.open().map(|_| ()).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{error}");
        error
    }

    /// Opens, but does not read the cluster at `at`.
    #[track_caller]
    pub fn unreadable(&self, at: u64, code: &str) -> Error {
        let error = self.chain().unwrap().read(GuestOffset(at), &mut [0; 4096]).unwrap_err();
        assert_eq!(error.code(), format!("ERR_QCOW2_{code}"), "{error}");
        error
    }

    #[track_caller]
    pub fn noticed(&self, code: &str) -> Chain {
        let chain = self.chain().unwrap();
        let codes: Vec<_> = chain.layer(0).unwrap().notices().iter().map(|n| n.code).collect();
        assert!(codes.contains(&code), "{codes:?} has {code}");
        chain
    }
}

/// What that image reads as.
pub fn expected() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[..256 << 10].fill(0x5a);
    bytes
}
