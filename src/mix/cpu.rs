//! placeholder
use super::*;
pub struct CpuMixer(Format);
impl CpuMixer { pub fn new(f: Format) -> Self { Self(f) } }
impl Mixer for CpuMixer { fn name(&self)->&'static str{"cpu"} fn mix(&mut self, _: &[Row<'_>], _: &mut [u8]) -> Result<(), MixError> { let _ = self.0; unimplemented!() } }
