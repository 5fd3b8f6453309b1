"""Words by which settings ask for parts of networks and for losses; nothing here loads torch, so that a wrong word is refused at once."""

from __future__ import annotations

from typing import Literal

#: Normalization in networks on grids (:func:`bidsharm.nn.blocks.norm`).
Norm = Literal['instance', 'batch', 'mad', 'layer', 'none']
#: Normalization in networks on spheres (:mod:`bidsharm.nn.spherical`).
SurfaceNorm = Literal['group', 'channel', 'none']
#: Blocks of a U-Net, what stands at its bottom, and how it gets there (:class:`bidsharm.nn.unet.UNet`).
Block = Literal['plain', 'residual']
Bottleneck = Literal['conv', 'transformer']
Downsampling = Literal['stride', 'pool']
#: What becomes of the last features of a translating network (:mod:`bidsharm.nn.resnet`).
Head = Literal['direct', 'residual', 'attention']
#: How discriminators and generators are scored (:data:`bidsharm.nn.losses.GAN_LOSSES`).
GanLoss = Literal['least_squares', 'logistic', 'hinge']
#: How volumes from slices along several axes become one (:class:`bidsharm.training.views.Slices`).
Fusion = Literal['median', 'mean']
