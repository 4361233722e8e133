//! The N-API boundary: conversions between JavaScript values and engine calls.
