"""Zoom: the map of the first hop chooses windows of the picture, and the later hops read these at full detail.

I images, B questions (B >= I), f = `zoom_factor`, K = `zoom_regions`, W windows of a picture, N patches of the glance,
P prefix tokens (CLS, registers), E width of the vision encoder, D width of the hops.

The picture has f times the height and the width of what the vision encoder reads at once. Two things of that size are
read: the glance, which is the whole picture made smaller, and windows, which show 1 / f of its height and its width as
they are. So a window has N patches too. Windows overlap by half: there are W = (2 f - 1)^2 places.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .boxes_qca import centers, grid_boxes
from .pairs_qca import ImageIndex, expand_to_questions
from .states_qca import PatchPlaces
from .vision_qca import QCAImageFeatures

WindowReader = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images and windows `[U]` -> patches `[U, N, E]`


class Windows(NamedTuple):
    """
    The windows of a picture, in raster order.

    Args:
        factor: f.
        fine_grid: (rows, columns) of the patches of the whole picture at full detail.
        inside: `[W, N]` the share of each patch of the glance that a window shows.
        cells: `[W, N]` raster positions on the fine grid of the patches of a window.
        boxes: `[W, 4]` (left, top, right, bottom) in 0..1 of the picture.
    """

    factor: int
    fine_grid: tuple[int, int]
    inside: torch.Tensor
    cells: torch.Tensor
    boxes: torch.Tensor

    @classmethod
    def of(cls, grid: tuple[int, int], factor: int, device: torch.device) -> "Windows":
        """`grid` is that of the glance; both of its sides are even."""
        rows, columns = grid
        places = torch.arange(2 * factor - 1, device=device)
        top, left = (places[:, None] * (length // 2) for length in grid)  # on the fine grid
        in_rows, in_columns = (_covered(start, n, factor) for start, n in ((top, rows), (left, columns)))
        row, column = (start + torch.arange(n, device=device) for start, n in ((top, rows), (left, columns)))
        cells = row[:, None, :, None] * columns * factor + column[None, :, None, :]
        y, x = torch.meshgrid(places, places, indexing="ij")
        start = torch.stack([x, y], dim=-1).flatten(0, 1) / (2 * factor)
        return cls(
            factor,
            (rows * factor, columns * factor),
            (in_rows[:, None, :, None] * in_columns[None, :, None, :]).flatten(0, 1).flatten(1),
            cells.flatten(0, 1).flatten(1),
            torch.cat([start, start + 1 / factor], dim=-1),
        )

    def choose(self, relevance: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The windows that hold most of a map, one after another. What a window holds does not count for those after it.

        Args:
            relevance: `[B, N]` shares of the patches of the glance.
            count: K.

        Returns:
            Different windows `[B, K]`, and the share of each `[B, K]`. Ties go to the earlier window.
        """
        inside, taken = self.inside.to(relevance), torch.zeros_like(relevance[:, :1]).expand(-1, len(self.inside))
        chosen, shares = [], []
        with torch.autocast(relevance.device.type, enabled=False):  # with 8 bits, windows that overlap would tie
            for _ in range(count):
                held = relevance @ inside.T  # [B, W]
                window = (held - 2 * taken).argmax(dim=-1, keepdim=True)  # a share is at most 1
                chosen.append(window)
                shares.append(held.gather(1, window))
                relevance = relevance * (1 - inside[window[:, 0]])
                taken = taken.scatter(1, window, 1.0)
        return torch.cat(chosen, dim=1), torch.cat(shares, dim=1)


def _covered(start: torch.Tensor, length: int, factor: int) -> torch.Tensor:
    """The share of each of `length` patches of the glance that `length` cells from `start` `[P, 1]` on cover."""
    first = torch.arange(length, device=start.device) * factor
    overlap = torch.minimum(start + length, first + factor) - torch.maximum(start, first)
    return overlap.clamp(min=0) / factor


class Zoom:
    """
    The windows that the questions of one forward pass choose. A window of an image is encoded once for all of them.

    Args:
        config: of the model.
        glance: its features.
        image_index: the image of each question.
        read: encodes windows.
        embed: the `PatchEmbedder` of the hops.
    """

    def __init__(self, config: Any, glance: Any, image_index: ImageIndex | None, read: WindowReader, embed: nn.Module):
        self.windows = Windows.of(glance.grid, config.zoom_factor, glance.last_hidden_state.device)
        self.count, self.image_index, self.read, self.embed = config.zoom_regions, image_index, read, embed
        self.chosen: torch.Tensor | None = None  # [B, K]

    def __call__(
        self, relevance: torch.Tensor, patches: torch.Tensor, places: PatchPlaces
    ) -> tuple[torch.Tensor, PatchPlaces]:
        """
        Args:
            relevance: `[B, H, N]` of the first hop.
            patches: `[I, N, D]` of the glance.
            places: of these patches.

        Returns:
            Patches `[B, N + K N, D]` of the glance and of the chosen windows, and their places. Those of a window are
            multiplied by its share of the relevance divided by the same number without a gradient, so that the first
            hop learns to choose (straight-through, Bengio et al. 2013).
        """
        relevance = relevance.mean(dim=1).to(self.windows.inside.device)
        self.chosen, shares = self.windows.choose(relevance, self.count)
        pairs = torch.arange(relevance.shape[0], device=relevance.device)
        images = pairs if self.image_index is None else self.image_index.rows.to(pairs.device)
        number = len(self.windows.inside)
        needed = (images[:, None] * number + self.chosen).flatten()  # [B K]
        order = torch.arange(needed.shape[0], device=needed.device)
        if not torch.compiler.is_compiling():  # the shapes of a traced graph cannot depend on the data
            needed, order = needed.unique(return_inverse=True)
        where = needed % number
        boxes = self.fine_boxes[self.windows.cells[where]].to(patches.device)
        found = self.embed(self.read(needed // number, where), centers(boxes))  # [U, N, D]
        found = found.index_select(0, order.to(found.device)).unflatten(0, self.chosen.shape)  # [B, K, N, D]
        shares = shares.clamp(min=torch.finfo(shares.dtype).tiny)
        found = found * (shares / shares.detach()).to(found)[..., None, None]
        coordinates = centers(boxes).index_select(0, order.to(boxes.device)).unflatten(0, self.chosen.shape)
        glance = places.coordinates.expand(pairs.shape[0], -1, -1)
        both = torch.cat([glance, coordinates.flatten(1, 2).to(glance)], dim=1)
        patches = torch.cat([expand_to_questions(patches, self.image_index), found.flatten(1, 2).to(patches)], dim=1)
        return patches, PatchPlaces(both)

    def on_fine_grid(self, relevance: torch.Tensor) -> torch.Tensor:
        """
        Maps over the patches of the glance and of the chosen windows as maps over the fine grid.

        Args:
            relevance: `[B, T, H, N]` or, with the chosen windows, `[B, T, H, N + K N]`.

        Returns:
            `[B, T, H, f^2 N]`: the share of a patch of the glance is spread over the cells that it covers.
        """
        factor, (rows, columns) = self.windows.factor, self.windows.fine_grid
        size = self.windows.inside.shape[1]
        glance = relevance[..., :size].unflatten(-1, (rows // factor, columns // factor)) / factor**2
        fine = glance.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1).flatten(-2)
        if self.chosen is None:
            return fine
        cells = self.windows.cells.to(relevance.device)[self.chosen.to(relevance.device)].flatten(1)  # [B, K N]
        found = relevance[..., size:]
        return fine.scatter_add(-1, cells[:, None, None].expand(found.shape), found)

    @property
    def fine_boxes(self) -> torch.Tensor:
        """`[f^2 N, 4]` (left, top, right, bottom) of the patches of the fine grid in 0..1 of the picture."""
        return grid_boxes(self.windows.fine_grid, self.windows.cells.device)

    @property
    def boxes(self) -> torch.Tensor | None:
        """`[B, K, 4]` (left, top, right, bottom) of the chosen windows in 0..1 of the picture."""
        return None if self.chosen is None else self.windows.boxes[self.chosen]


def encode_glance(
    encoder: Any, pixel_values: torch.Tensor, requested: dict[str, Any]
) -> tuple[QCAImageFeatures, WindowReader]:
    """
    Args:
        encoder: the `QuestionAwareVisionEncoder`.
        pixel_values: `[I, 3, h, w]` of whole pictures.
        requested: of `QuestionAwareVisionEncoder.encode_images`.

    Returns:
        Features of the glances, and a function that encodes windows.

    Raises:
        ValueError: if windows of this size do not fit on the patches.
    """
    (height, width), config = pixel_values.shape[-2:], encoder.config
    factor, patch = config.zoom_factor, config.patch_size
    multiples = [2 * factor * side for side in patch]
    if height % multiples[0] or width % multiples[1]:
        raise ValueError(
            f"With `zoom_factor={factor}` the sides of `pixel_values` must be multiples of {multiples[0]} and "
            f"{multiples[1]} pixels, got {height} x {width}. Set the `size` of the image processor."
        )
    glance = encoder.encode_images(nn.functional.avg_pool2d(pixel_values, factor), **requested)

    def read(images: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        pictures = _crop(pixel_values, images, windows, factor)
        return encoder.encode_images(pictures).last_hidden_state[:, encoder.shape.prefix :]

    return glance, read


def encode_all_windows(encoder: Any, pixel_values: torch.Tensor, requested: dict[str, Any]) -> QCAImageFeatures:
    """Features of the glance and of every window, one after another: `[I, (1 + W) (P + N), E]`."""
    features, _ = encode_glance(encoder, pixel_values, requested)
    factor = encoder.config.zoom_factor
    images, found = torch.arange(len(pixel_values), device=pixel_values.device), [features.last_hidden_state]
    for window in range((2 * factor - 1) ** 2):
        pictures = _crop(pixel_values, images, torch.full_like(images, window), factor)
        found.append(encoder.encode_images(pictures).last_hidden_state)
    features.last_hidden_state = torch.cat(found, dim=1)
    features.grid = (features.grid[0] * factor, features.grid[1] * factor)
    return features


def _crop(pixel_values: torch.Tensor, images: torch.Tensor, windows: torch.Tensor, factor: int) -> torch.Tensor:
    """`[U, 3, h / f, w / f]`: window `windows[u]` of picture `images[u]`."""
    device = pixel_values.device
    images, windows = images.to(device), windows.to(device)
    height, width = (side // factor for side in pixel_values.shape[-2:])
    row = (windows // (2 * factor - 1) * (height // 2))[:, None] + torch.arange(height, device=device)
    column = (windows % (2 * factor - 1) * (width // 2))[:, None] + torch.arange(width, device=device)
    return pixel_values[images[:, None, None], :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


__all__ = ["WindowReader", "Windows", "Zoom", "encode_all_windows", "encode_glance"]
