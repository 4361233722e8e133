//! The words that stand for choices.

use qcow2_engine::storage::CacheMode;
use qcow2_engine::{Error, Format};
use qcow2_format::{CompressionType, Version};

/// An argument with a word that it does not have.
pub(crate) fn unknown(argument: &'static str, word: &str) -> Error {
    Error::Invalid {
        argument,
        reason: format!("'{word}' is not one of its values"),
    }
}

/// What a [`CompressionType`] is called.
pub(crate) fn compression_name(compression: CompressionType) -> &'static str {
    match compression {
        CompressionType::Deflate => "zlib",
        CompressionType::Zstd => "zstd",
        CompressionType::Lz4 => "lz4",
    }
}

/// The caches of files; none said: the page cache.
pub(crate) fn cache_named(word: Option<&str>) -> Result<CacheMode, Error> {
    match word {
        None | Some("writeback") => Ok(CacheMode::Writeback),
        Some("writethrough") => Ok(CacheMode::Writethrough),
        Some("none") => Ok(CacheMode::None),
        Some("directsync") => Ok(CacheMode::Directsync),
        Some("unsafe") => Ok(CacheMode::Unsafe),
        Some(other) => Err(unknown("cache", other)),
    }
}

pub(crate) fn format_named(word: &str) -> Result<Format, Error> {
    match word {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        "luks" => Ok(Format::Luks),
        other => Err(unknown("format", other)),
    }
}

pub(crate) fn version_numbered(version: u32) -> Result<Version, Error> {
    match version {
        2 => Ok(Version::V2),
        3 => Ok(Version::V3),
        other => Err(unknown("version", &other.to_string())),
    }
}

pub(crate) fn compression_named(word: &str) -> Result<CompressionType, Error> {
    match word {
        "zlib" => Ok(CompressionType::Deflate),
        "zstd" => Ok(CompressionType::Zstd),
        "lz4" => Ok(CompressionType::Lz4),
        other => Err(unknown("compression", other)),
    }
}
