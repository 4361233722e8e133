//! Images on top of each other, filled by qemu-io and by a flat model alike, for what moves bytes between them.

use std::io::ErrorKind;
use std::sync::Arc;

use qcow2_engine::storage::testing::FailingStorage;
use qcow2_engine::storage::{AllowSpecial, FileStorage, OpenMode};
use qcow2_engine::{Layer, LayerOptions, Locking, Result, Storage};

use super::{Filling, Folder, Model, Random, assert_same, qemu_img, random_commands};

/// One image of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What `qemu-img create -o` is given, or `raw`.
    pub options: &'static str,
    pub size: u64,
}

pub fn shape(options: &'static str, size: u64) -> Shape {
    Shape { options, size }
}

impl Shape {
    pub fn format(&self) -> &'static str {
        if self.options == "raw" { "raw" } else { "qcow2" }
    }

    fn cluster(&self) -> u64 {
        let text = self.options.split("cluster_size=").nth(1).unwrap_or("65536");
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        let unit = match text[digits.len()..].chars().next() {
            Some('k') => 1 << 10,
            Some('M') => 1 << 20,
            _ => 1,
        };
        digits.parse::<u64>().unwrap() * unit
    }

    fn has(&self, word: &str) -> bool {
        self.options.contains(word)
    }
}

/// Makes image `name` over `below`, fills it at random, and returns what it reads as.
pub fn make(
    folder: &Folder,
    name: &str,
    shape: Shape,
    below: Option<(&str, Shape, &Model)>,
    random: &mut Random,
) -> Model {
    let size = shape.size.to_string();
    let options = shape.options.replace("data_file=", &format!("data_file={name}."));
    let mut args = vec!["create", "-q", "-f", shape.format()];
    if shape.format() == "qcow2" {
        args.extend(["-o", &options]);
    }
    if let Some((below, shape, _)) = below {
        args.extend(["-b", below, "-F", shape.format()]);
    }
    args.extend([name, &size]);
    qemu_img(folder, &args);
    let mut model = below.map_or(Model(vec![0; shape.size as usize]), |(_, _, model)| {
        model.overlay(shape.size as usize)
    });
    let filling = Filling {
        cluster: shape.cluster(),
        compressed: shape.format() == "qcow2" && !shape.has("data_file") && shape.has("compat=1.1"),
        zeroes: true,
    };
    let commands = random_commands(random, &mut model, filling, 12);
    let mut args = vec!["-f", shape.format()];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(name);
    super::run(folder, "qemu-io", &args);
    model
}

/// Opens one image as a layer.
pub fn open(folder: &Folder, name: &str, shape: Shape, writable: bool) -> Layer {
    open_failing(folder, name, shape, writable, u64::MAX).unwrap()
}

/// The same; call number `fail_at` of its storage fails, and all behind it.
pub fn open_failing(folder: &Folder, name: &str, shape: Shape, writable: bool, fail_at: u64) -> Result<Layer> {
    let mode = OpenMode {
        writable,
        special: AllowSpecial::No,
    };
    let file = |name: &str| -> Arc<dyn Storage> { Arc::new(FileStorage::open(&folder.path(name), mode).unwrap()) };
    let options = LayerOptions {
        writable,
        locking: Locking::Off,
        ..LayerOptions::default()
    };
    let storage: Arc<dyn Storage> = if fail_at == u64::MAX {
        file(name)
    } else {
        Arc::new(FailingStorage::new(file(name), fail_at, true, ErrorKind::Other))
    };
    if shape.format() == "raw" {
        return Layer::open_raw(storage, &options);
    }
    let mut layer = Layer::open_qcow2(storage, &options)?;
    if layer.needs_data_file() {
        let data = layer.extensions().unwrap().data_file.clone().unwrap();
        layer.set_data_file(file(&data))?;
    }
    Ok(layer)
}

/// What qemu-img reads from an image.
pub fn qemu_bytes(folder: &Folder, name: &str, format: &str) -> Vec<u8> {
    qemu_img(folder, &["convert", "-f", format, "-O", "raw", name, "whole.out"]);
    std::fs::read(folder.path("whole.out")).unwrap()
}

/// The image reads as the model to qemu-img, and is sound.
#[track_caller]
pub fn assert_holds(folder: &Folder, name: &str, shape: Shape, model: &Model, what: &str) {
    let bytes = qemu_bytes(folder, name, shape.format());
    assert_same(&bytes, &model.0, what);
    if shape.format() == "qcow2" {
        qemu_img(folder, &["check", "-q", name]);
    }
}
