//! Numbers between 64-bit words and JavaScript.

use napi::bindgen_prelude::BigInt;
use qcow2_engine::Error;

/// A `bigint` that must fit 64 bits without a sign.
pub(crate) fn unsigned(argument: &'static str, value: Option<&BigInt>) -> Result<Option<u64>, Error> {
    let Some(value) = value else { return Ok(None) };
    match (value.sign_bit, value.words.as_slice()) {
        (_, [] | [0]) => Ok(Some(0)),
        (false, [word]) => Ok(Some(*word)),
        _ => Err(Error::Invalid {
            argument,
            reason: "outside of 0 to 2^64-1".to_owned(),
        }),
    }
}

/// As [`unsigned`], of something that must be there.
pub(crate) fn required(argument: &'static str, value: &BigInt) -> Result<u64, Error> {
    unsigned(argument, Some(value)).map(Option::unwrap_or_default)
}
