"""The finder of stages: one for all tasks, and what it finds sees all of the network."""

import re

import pytest
import torch
from torch import nn
from torchvision.ops import nms

from lora_comp.networks import ExternalNetwork, SmallResNet, load_external, load_network
from lora_comp.networks.external import Source, photos
from lora_comp.networks.input import Input
from lora_comp.networks.paths import ancestors
from lora_comp.networks.taps import Modules, Script, tensors_in
from lora_comp.tasks import load_task

LAYERS = {
    "torchvision/resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "torchvision/mobilenet_v2": ["features.3", "features.6", "features.13", "features"],
    "timm/resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "timm/mobilenetv3_small_050": ["blocks.0", "blocks.1", "blocks.3", "blocks.5"],
    "timm/efficientnet_lite0": ["blocks.1", "blocks.2", "blocks.4", "bn2"],  # its last convolution follows the blocks
    "timm/vit_tiny_patch16_224": ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
    "timm/swin_tiny_patch4_window7_224": ["layers.0", "layers.1", "layers.2", "layers.3"],
    "scenes": ["layers.0", "layers.1", "layers.2", "layers.3"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_classifier_has_the_same_stages_under_cls_and_open(name, make_image):
    weights = "default" if name == "scenes" else None
    cls, opened = load_task("cls", network=name, weights=weights), load_task("open", network=name, weights=weights)
    assert opened.network.layers == LAYERS[name]
    assert isinstance(cls.network, SmallResNet) or cls.network.layers == LAYERS[name]
    x = make_image(96, 128)[None]
    with torch.no_grad():
        for stage, same in zip(cls.network.stages(x), opened.network.stages(x), strict=True):
            assert torch.equal(stage, same)


KINDS = {  # a small one of each kind: what its stages return, how its blocks are listed, where its head reads
    "cls": [
        "torchvision/mobilenet_v2",
        "timm/test_efficientnet",
        "timm/test_vit",
        "timm/levit_128s",
        "timm/pit_ti_224",
        "timm/crossvit_tiny_240",
        "timm/twins_svt_small",
        "timm/coat_lite_tiny",
        "timm/mixer_s32_224",
        "timm/mvitv2_tiny",
        "timm/hrnet_w18_small",
        "timm/efficientvim_m1",
        "timm/lcnetv2_small",
        "timm/cspnext_tiny",
    ],
    "open": [
        "timm/mixer_s32_224",
        "timm/pit_ti_224",
        "timm/crossvit_tiny_240",
        "timm/coat_lite_tiny",
        "timm/efficientvit_b0",
        "timm/test_convnext",
        "torchvision/shufflenet_v2_x0_5",
    ],
    "traced": ["timm/cait_xxs24_224", "timm/mixer_s32_224", "timm/pit_ti_224", "timm/test_resnet"],
}
INSIDE = re.compile(r"attn|mlp|token|qkv|fc\d|pool_q")  # names of what lies inside of a residual branch
HEAD = re.compile(r"head|classifier|(^|\.)fc\.|aggregate|last_linear|^weights$|^norm\.(alpha|beta)$")
# One small classifier of nearly every module and prefix of timm.
MANY = """
botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coat_tiny coatnet_pico_rw_224 coatnext_nano_rw_224
convformer_s18 convit_tiny convnext_zepto_rms convnextv2_atto cpubone_nano crossvit_9_dagger_240
crossvit_tiny_240 cs3darknet_focus_s csatv2 cspdarknet53 cspnext_tiny cspresnet50 darknet17 davit_tiny
deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 densenetblur121d dla34 dla46x_c dpn48b
eca_botnext26ts_256 eca_nfnet_l0 eca_resnext26ts eca_vovnet39b ecaresnet26t ecaresnetlight ecaresnext26t_32x4d
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0 efficientnetv2_rw_t
efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0
fastvit_t8 fbnetc_100 fbnetv3_b flexivit_small focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnet33ts
gcresnext26ts gcvit_xxtiny gernet_s ghostnet_050 ghostnetv3_050 gmixer_12_224 gmlp_ti16_224 haloregnetz_b
hardcorenas_b hgnet_tiny hgnetv2_b0 hgnetv2_b1 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t
inception_next_atto inception_v3 lambda_resnet26t lcnet_035 lcnetv2_small legacy_seresnet18 legacy_xception
levit_128s levit_conv_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256
maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 mixer_s16_224 mixer_s32_224 mixnet_s mnasnet_small
mobilenet_edgetpu_100 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium
mobileone_s1 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 nf_resnet50 nfnet_l0
pit_ti_224 pit_xs_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetv_040 regnetx_002 regnety_002
regnetz_005 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2next50 resmlp_12_224 resnest14d resnet10t
resnet32ts resnetaa34d resnetblur18 resnetv2_18 resnext26ts resnext50_32x4d rexnet_100 rexnetr_100
sedarknet21 sehalonet33ts selecsls42 semnasnet_050 sequencer2d_s seresnet18 seresnet33ts
seresnetaa50d seresnext26d_32x4d seresnext26ts shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet test_coatnet
test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos tf_mixnet_s
tf_mobilenetv3_small_075 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tnt_s_patch16_224 tresnet_m
twins_pcpvt_small twins_svt_small visformer_tiny vit_relpos_small_patch16_rpn_224 vit_small_r26_s32_224
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a
xcit_nano_12_p8_224 xcit_tiny_12_p16_224
""".split()  # noqa: SIM905


def waken(model: nn.Module) -> None:
    """Scales and embeddings that start at 0, or nearly, would hide what is behind them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, 0, 0.1)
            elif parameter.numel() > 1 and parameter.std() < 1e-8 and parameter.abs().max() < 1e-2:
                parameter.fill_(0.5)


def opened(name: str, traced: bool) -> ExternalNetwork:
    """The network as a function of one's own returns it, or as a TorchScript file holds it."""
    model = load_network(name, None).model
    waken(model)
    if not traced:
        return ExternalNetwork(name, Source(Modules(model)), Input())
    size = model.pretrained_cfg["input_size"][1:]
    script = torch.jit.trace(model.eval(), torch.rand(1, 3, *size), check_trace=False)
    return ExternalNetwork(name, Source(Script(script)), Input(size))


def seen(outputs: list, weights: dict[str, nn.Parameter]) -> set[str]:
    """The weights on which outputs depend."""
    total = sum((y * torch.rand_like(y)).sum() for y in outputs)
    gradients = torch.autograd.grad(total, [*weights.values()], allow_unused=True, retain_graph=True)
    return {key for key, gradient in zip(weights, gradients, strict=True) if gradient is not None and gradient.any()}


def check_stages(network: ExternalNetwork) -> None:
    """Each weight that the answer depends on shows in what is compared, but for those of the head, and of norms and
    pooling before it; and to disturb the part of the network before a stage moves that stage."""
    waken(network.model)
    model, x = network.model.requires_grad_(True), photos(network.probed)[:1]
    weights = {key: weight for key, weight in model.named_parameters() if weight.ndim > 1}
    answer = [y for y in tensors_in(network(x)).values() if y.requires_grad]
    stages = network.stages(x)
    by_stage = [seen([stage], weights) for stage in stages]
    unseen = seen(answer, weights) - set().union(*by_stage)
    assert all(HEAD.search(key) for key in unseen), unseen
    assert not any(INSIDE.search(name) for name in network.layers), network.layers
    for index, stage in enumerate(stages):
        part = by_stage[index] - set().union(*by_stage[:index])
        with torch.no_grad():
            before = {key: weights[key].clone() for key in part}
            for key in part:
                weights[key].add_(0.5 * weights[key].std() * torch.randn_like(weights[key]))
            moved = (network.stages(x)[index] - stage).norm() / stage.norm()
            for key in part:
                weights[key].copy_(before[key])
        assert not part or moved > 0.003, (network.layers[index], float(moved))


@pytest.mark.parametrize("name", KINDS["cls"])
def test_what_changes_a_part_of_a_classifier_changes_what_is_compared(name):
    check_stages(load_network(name, None))


@pytest.mark.parametrize("name", KINDS["open"])
def test_so_it_is_for_a_network_whose_stages_nobody_lists(name):
    check_stages(opened(name, traced=False))


@pytest.mark.parametrize("name", KINDS["traced"])
def test_in_a_traced_network_the_stages_are_cuts(name):
    """Weights of TorchScript are constants: here a stage is put back in, and gives the answer of its image."""
    network = opened(name, traced=True)
    x = photos(network.probed)[:1].requires_grad_()
    probe = network.taps.probe(network.prepare(x))
    heads = [name for name in network.layers if probe.tensors[name].ndim == 2]
    cut = {probe.tensors[name].grad_fn for name in network.layers if name not in heads}
    for function in cut:
        before = ancestors([probe.tensors[name].grad_fn for name in heads], {function})
        assert not any(isinstance(f, type(x.clone().grad_fn.next_functions[0][0])) for f in before)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_so_it_is_throughout_timm(name):
    check_stages(load_network(f"timm/{name}", None))


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_so_it_is_throughout_timm_where_nobody_lists_stages(name):
    check_stages(opened(f"timm/{name}", traced=False))


class Suppresses(nn.Module):
    """Returns the places of the best boxes alone, as a network with its suppression does."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.box, self.score = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1)

    def forward(self, x):
        x = self.body(x)
        boxes, scores = self.box(x).flatten(2)[0].mT, self.score(x).flatten().sigmoid()
        return nms(boxes, scores, 0.5)


def test_boxes_that_only_a_suppression_reads_are_matched():
    network = ExternalNetwork("suppresses", Source(Modules(Suppresses())), Input())
    assert network.layers[-2:] == ["box", "score"]


def test_the_parts_of_what_a_submodule_returns_have_names(make_image):
    x = make_image(64, 64)[None]
    first, both = (
        load_external("timm/pit_ti_224", None, layers=[name]) for name in ("transformers.0:0", "transformers.0")
    )
    assert first.layers == ["transformers.0:0"] and both.layers == ["transformers.0:0", "transformers.0:1"]
    assert torch.equal(first.stages(x)[0], both.stages(x)[0])


def test_what_blocks_return_comes_before_what_is_inside_of_them():
    assert load_external("torchvision/regnet_x_400mf", None).layers == [
        "trunk_output.block1",
        "trunk_output.block2",
        "trunk_output.block3",
        "trunk_output",
    ]


def test_a_layer_goes_by_each_of_its_names():
    network = load_external("timm/vit_tiny_patch16_224", None, layers=["blocks", "blocks.0"])
    assert network.layers == ["blocks.0", "blocks"]
    assert load_external("timm/vit_tiny_patch16_224", None, layers=["blocks.11"]).layers == ["blocks.11"]
