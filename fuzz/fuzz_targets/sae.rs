#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| neurograft_fuzz::sae(data));
