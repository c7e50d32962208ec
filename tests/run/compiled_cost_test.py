"""Costs read from the text of a compiled program, against sums by hand."""

from absl.testing import absltest

from diffusion_ebm.run import compiled_cost

_CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
_TEXT = f"""HloModule jit_step, is_scheduled=true

%fused.1 (p.0: bf16[4,8,8,16], p.1: bf16[3,3,16,16]) -> bf16[4,8,8,16] {{
  %p.0 = bf16[4,8,8,16]{{3,2,1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %p.1 = bf16[3,3,16,16]{{3,2,1,0}} parameter(1)
  ROOT %convolution.1 = bf16[4,8,8,16]{{3,2,1,0}} convolution(%p.0, %p.1), window={{size=3x3}}, dim_labels=b01f
}}

%fused.2 (q.0: f32[4,16], q.1: f32[16,16]) -> f32[4,16] {{
  %q.0 = f32[4,16]{{1,0}} parameter(0)
  %q.1 = f32[16,16]{{1,0}} parameter(1)
  ROOT %convolution.2 = f32[4,16]{{1,0}} convolution(%q.0, %q.1), dim_labels=bf_io->bf
}}

%condition (c.0: (s32[], bf16[4,8,8,16])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(30)
  %c.0 = (s32[], bf16[4,8,8,16]{{3,2,1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%c.0), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

%body (b.0: (s32[], bf16[4,8,8,16])) -> (s32[], bf16[4,8,8,16]) {{
  %b.0 = (s32[], bf16[4,8,8,16]{{3,2,1,0}}) parameter(0)
  %x = bf16[4,8,8,16]{{3,2,1,0:T(8,128)(2,1)S(1)}} get-tuple-element(%b.0), index=1
  %kernel = bf16[3,3,16,16]{{3,2,1,0}} get-tuple-element(%b.0), index=2
  %convolution_fusion = bf16[4,8,8,16]{{3,2,1,0}} fusion(%x, %kernel), kind=kOutput, calls=%fused.1, {_CYCLES % 100}
  ROOT %tuple = (s32[], bf16[4,8,8,16]) tuple(%i, %convolution_fusion)
}}

ENTRY %main (a.0: f32[4,16], a.1: f32[16,16]) -> f32[4,16] {{
  %a.0 = f32[4,16]{{1,0}} parameter(0)
  %a.1 = f32[16,16]{{1,0}} parameter(1)
  %start = (s32[], bf16[4,8,8,16]{{3,2,1,0}}) tuple(%a.0, %a.1)
  %while.1 = (s32[], bf16[4,8,8,16]{{3,2,1,0}}) while(%start), condition=%condition, body=%body
  %product = f32[4,16]{{1,0}} fusion(%a.0, %a.1), kind=kOutput, calls=%fused.2, {_CYCLES % 7}
  %copy.1 = f32[4,16]{{1,0:T(8,128)S(1)}} copy(%product), {_CYCLES % 2}
  %all-reduce.1 = f32[4,16]{{1,0}} all-reduce(%product), replica_groups={{{{0,1}}}}, to_apply=%add
  ROOT %sum = f32[4,16]{{1,0}} fusion(%all-reduce.1), kind=kLoop, calls=%fused.3, {_CYCLES % 3}
}}
"""


class CostTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.cost = compiled_cost.cost(_TEXT)

  def test_loops_count_as_often_as_they_run_and_kinds_are_told_apart(self):
    self.assertEqual(
      self.cost.cycles, {'convolutions': 3000.0, 'products': 7.0, 'collectives': 0, 'copies': 2.0, 'other': 3.0}
    )

  def test_traffic_is_what_lies_in_the_main_memory(self):
    kernel, image = 2 * 9 * 16 * 16, 2 * 4 * 64 * 16  # the image is read from the memory on the chip
    vector, matrix = 4 * 4 * 16, 4 * 16 * 16
    expected = 30 * (kernel + image) + (2 * vector + matrix) + vector + 2 * vector + 2 * vector
    self.assertEqual(self.cost.traffic, expected)

  def test_collectives(self):
    self.assertEqual(self.cost.collectives, {'all-reduce': 4 * 4 * 16})


def program(body, *computations):
  return '\n'.join(('HloModule m', '', *computations, f'ENTRY %main (p: f32[4]) -> f32[4] {{\n{body}\n}}'))


class BranchesTest(absltest.TestCase):
  def test_the_dearest_branch_counts_with_its_loops(self):
    loop = f"""%condition (c: s32[]) -> pred[] {{
  %limit = s32[] constant(50)
  %c = s32[] parameter(0)
  ROOT %lt = pred[] compare(%c, %limit), direction=LT
}}

%body (b: s32[]) -> s32[] {{
  %b = s32[] parameter(0)
  ROOT %product = s32[] dot(%b, %b), {_CYCLES % 2}
}}

%long (l: s32[]) -> s32[] {{
  %l = s32[] parameter(0)
  ROOT %while = s32[] while(%l), condition=%condition, body=%body
}}

%short (s: s32[]) -> s32[] {{
  %s = s32[] parameter(0)
  ROOT %tanh = s32[] tanh(%s), {_CYCLES % 7}
}}
"""
    for called in ('branch_computations={%short, %long}', 'true_computation=%short, false_computation=%long'):
      cost = compiled_cost.cost(program(f'  %r = s32[] conditional(%p, %p, %p), {called}', loop))
      self.assertEqual((cost.cycles['products'], cost.cycles['other']), (100.0, 0.0))


class SlicesTest(absltest.TestCase):
  def test_of_a_slice_the_slice_is_read(self):
    text = program(
      """  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[]{:S(1)} parameter(1)
  %slice = f32[1,8]{1,0} dynamic-slice(%p, %i), dynamic_slice_sizes={1,8}
  ROOT %updated = f32[100,8]{1,0} dynamic-update-slice(%p, %slice, %i)"""
    )
    self.assertEqual(compiled_cost.cost(text).traffic, 2 * 32 + 2 * 32)

  def test_inside_of_a_fusion_too(self):
    fused = """%fused (a: f32[100,8], b: s32[], c: f32[1,8]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[1,8]{1,0} parameter(2)
  %slice = f32[1,8]{1,0} dynamic-slice(%a, %b), dynamic_slice_sizes={1,8}
  %sum = f32[1,8]{1,0} add(%slice, %c)
  ROOT %updated = f32[100,8]{1,0} dynamic-update-slice(%a, %sum, %b)
}
"""
    text = program(
      """  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[]{:S(1)} parameter(1)
  %q = f32[1,8]{1,0} parameter(2)
  ROOT %r = f32[100,8]{1,0} fusion(%p, %i, %q), kind=kLoop, calls=%fused""",
      fused,
    )
    self.assertEqual(compiled_cost.cost(text).traffic, 32 + 32 + 32)  # the slice, c, the update

  def test_a_copy_counts_once(self):
    text = program(
      """  %p = f32[8]{0} parameter(0)
  %start = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%p)
  ROOT %done = f32[8]{0:S(1)} copy-done(%start)"""
    )
    self.assertEqual(compiled_cost.cost(text).traffic, 32)


class TypesTest(absltest.TestCase):
  def test_the_wider_operand_counts(self):
    self.assertEqual(compiled_cost.operand_types(_TEXT), {'convolutions': {'bf16': 1}, 'products': {'f32': 1}})

  def test_kernels_of_libraries(self):
    text = program(
      """  %p = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %k = bf16[3,3,4,4]{3,2,1,0} parameter(1)
  %c = bf16[2,8,8,4]{3,2,1,0} custom-call(%p, %k), window={size=3x3}, custom_call_target="__cudnn$convForward"
  ROOT %m = f32[4,4]{1,0} custom-call(%p, %k), custom_call_target="__cublas$gemm"
"""
    )
    self.assertEqual(compiled_cost.operand_types(text), {'convolutions': {'bf16': 1}, 'products': {'bf16': 1}})


if __name__ == '__main__':
  absltest.main()
