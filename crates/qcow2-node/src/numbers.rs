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

/// A `number` that must be whole, not negative and exact.
pub(crate) fn whole(argument: &'static str, value: f64) -> Result<u64, Error> {
    // The largest integer that every smaller one is exact under.
    const LARGEST: f64 = 9_007_199_254_740_991.0;
    if !(0.0..=LARGEST).contains(&value) || value.fract() != 0.0 {
        return Err(Error::Invalid {
            argument,
            reason: format!("{value} is not a whole number from 0 to 2^53-1"),
        });
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "just checked: whole, not negative, exact"
    )]
    Ok(value as u64)
}
