//! The N-API boundary: conversions between JavaScript values and engine calls.
//!
//! Nothing here knows how an image works. A call is accepted on the JavaScript thread (`call`), runs on a thread of the process's own
//! pool (`pool`), and leaves what came out in its environment's queue (`outbox`); one function, called once for each batch, hands it
//! to JavaScript (`instance`, `values`). Every entry, job and completion runs under one guard (`qcow2_engine::guard`), and everything `unsafe`
//! is in `raw`.

#![cfg_attr(test, allow(dead_code, reason = "entries are registered outside of tests only"))]
#![allow(unreachable_pub, reason = "what is public here is public to JavaScript")]

#[macro_use]
extern crate napi_derive;

mod amend;
mod bitmaps;
mod buffers;
mod call;
mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod digest;
mod disk;
mod encryption;
mod error;
mod handles;
mod inspect;
mod instance;
mod layer;
mod lifecycle;
mod listing;
mod map;
mod measure;
mod memory;
mod numbers;
mod outbox;
mod pool;
mod raw;
mod read;
mod rebase;
mod snapshots;
mod source;
mod target;
mod testing;
mod turnstile;
mod values;
mod words;
mod write;
