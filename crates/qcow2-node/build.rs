//! Sets up the link flags that a Node add-on needs.
fn main() {
    napi_build::setup();
}
