"""The counts of tools/gpu_compile.py, on a program small enough to count by hand."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("gpu_compile", Path(__file__).parents[2] / "tools" / "gpu_compile.py")
gpu_compile = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_compile)

# A loop over updates whose body has two kernels, a convolution and a branch of one kernel, and two loops over time: one
# of known length with two kernels a step, one of unknown length with one and another in its condition.
PROGRAM = """HloModule chunk

%fused (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%p)
}

%step (s: (f32[2])) -> (f32[2]) {
  %s = (f32[2]{0}) parameter(0)
  %g = f32[2]{0} get-tuple-element(%s), index=0
  %a = f32[2]{0} fusion(%g), kind=kLoop, calls=%fused
  %b = f32[2]{0} custom-call(%a), custom_call_target="__cublas$gemm"
  ROOT %t = (f32[2]{0}) tuple(%b)
}

%steps (s: (f32[2])) -> pred[] {
  %s2 = (f32[2]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

%back (s: (f32[2])) -> (f32[2]) {
  %s3 = (f32[2]{0}) parameter(0)
  ROOT %f = (f32[2]{0}) fusion(%s3), kind=kLoop, calls=%fused
}

%backs (s: (f32[2])) -> pred[] {
  %s4 = (f32[2]{0}) parameter(0)
  ROOT %f2 = pred[] fusion(%s4), kind=kLoop, calls=%fused
}

%branch (s: f32[2]) -> f32[2] {
  %s5 = f32[2]{0} parameter(0)
  ROOT %k = f32[2]{0} copy(%s5)
}

%update (u: (f32[2])) -> (f32[2]) {
  %u = (f32[2]{0}) parameter(0)
  %x = f32[2]{0} get-tuple-element(%u), index=0
  %y = f32[2]{0} fusion(%x), kind=kInput, calls=%fused
  %w = f32[2]{0} custom-call(%y, %x), window={size=5x5 rhs_dilate=2x2}, custom_call_target="__cudnn$convForward"
  %z = f32[2]{0} conditional(%x, %y, %y), true_computation=%branch, false_computation=%branch
  %one = (f32[2]{0}) while(%u), condition=%steps, body=%step, backend_config={"known_trip_count":{"n":"50"}}
  %two = (f32[2]{0}) while(%one), condition=%backs, body=%back
  ROOT %r = (f32[2]{0}) tuple(%z)
}

%updates (u: (f32[2])) -> pred[] {
  %u2 = (f32[2]{0}) parameter(0)
  ROOT %d = pred[] constant(true)
}

ENTRY %main (i: (f32[2])) -> (f32[2]) {
  %i = (f32[2]{0}) parameter(0)
  ROOT %all = (f32[2]{0}) while(%i), condition=%updates, body=%update
}
"""


def test_kernels_convolutions_and_loops_are_counted():
    assert gpu_compile.counted(PROGRAM) == {
        "kernels": 4,  # a fusion, a convolution, the copy of each branch
        "kernels_per_time_step": 4,
        "convolutions": 1,
        "misread_convolutions": 1,
        "loops_without_trip_count": 1,
    }
