"""Where tokens are: the box of each patch in its picture, and maps of relevance on the grid that boxes form.

B questions, I images, N patches or tokens.
"""

import torch


def grid_boxes(grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(left, top, right, bottom) of the patches of a `grid` (rows, columns) in raster order, in 0..1: `[N, 4]`."""
    rows, columns = (torch.arange(length + 1, device=device) / length for length in grid)
    top, left = torch.meshgrid(rows[:-1], columns[:-1], indexing="ij")
    bottom, right = torch.meshgrid(rows[1:], columns[1:], indexing="ij")
    return torch.stack([left, top, right, bottom], dim=-1).flatten(0, 1)


def shape_boxes(spatial_shapes: torch.Tensor, length: int) -> torch.Tensor:
    """
    Boxes of pictures with grids of their own, which are padded to one length.

    Args:
        spatial_shapes: `[I, 2]` (rows, columns) of each picture.
        length: N.

    Returns:
        `[I, N, 4]` as of [`grid_boxes`]; the box of padding is empty (zeros).
    """
    rows, columns = spatial_shapes[:, 0, None], spatial_shapes[:, 1, None]  # [I, 1]
    place = torch.arange(length, device=spatial_shapes.device)[None]  # [1, N]
    row, column = place // columns, place % columns
    boxes = torch.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], dim=-1)
    return boxes * (place < rows * columns)[..., None]


def is_token(boxes: torch.Tensor) -> torch.Tensor:
    """`[..., N, 4] -> [..., N]`: `False` for padding, whose box is empty."""
    return boxes[..., 2] > boxes[..., 0]


def centers(boxes: torch.Tensor) -> torch.Tensor:
    """(y, x) of the centers, from -1 to 1: `[..., N, 4] -> [..., N, 2]`."""
    return (boxes[..., :2] + boxes[..., 2:]).flip(-1) - 1


def on_grid(values: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """
    The values of the tokens of one picture on the grid that their boxes form.

    Args:
        values: `[..., N]`.
        boxes: `[N, 4]` of equal size, except for those of padding.

    Returns:
        `[..., rows, columns]`, zero where no token is.
    """
    boxes = boxes.to(values.device)
    real = is_token(boxes)
    values, boxes = values[..., real], boxes[real]
    columns, rows = (1 / (boxes[0, 2:] - boxes[0, :2])).round().long().tolist()
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 * boxes.new_tensor([columns, rows])).long().unbind(-1)
    cells = values.new_zeros(*values.shape[:-1], rows * columns)
    cells[..., row * columns + column] = values
    return cells.unflatten(-1, (rows, columns))


def maps_on_grids(
    values: torch.Tensor, grid: tuple[int, int] | None, boxes: torch.Tensor | None
) -> list[torch.Tensor]:
    """
    Args:
        values: `[B, ..., N]`.
        grid: (rows, columns) of all pictures, or else
        boxes: `[B, N, 4]`.

    Returns:
        For each question `[..., rows, columns]`.
    """
    if grid is not None:
        return list(values.unflatten(-1, grid))
    if boxes is None:
        raise ValueError("These outputs have neither a `grid` nor `patch_boxes`; pass all outputs of the model.")
    return [on_grid(row, places) for row, places in zip(values, boxes, strict=True)]


__all__ = ["centers", "grid_boxes", "is_token", "maps_on_grids", "on_grid", "shape_boxes"]
