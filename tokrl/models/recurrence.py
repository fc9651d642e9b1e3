"""The recurrences of RNN, LSTM and GRU, with gradients written out: half torch's time.

torch's cells build a graph of each token's sums and then walk it back. What needs the
state before can be done token by token; all else, the slopes of the gates and the
gradients of the weights, for all tokens at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def can_unroll(cells: nn.RNNBase, x: Tensor) -> bool:
    """Whether `unroll` is of use: on a CPU, in full precision, and for a gradient."""
    full = x.dtype in (torch.float32, torch.float64)
    full = full and not torch.is_autocast_enabled("cpu")
    learns = torch.is_grad_enabled() and cells.weight_hh_l0.requires_grad
    return full and learns and x.device.type == "cpu" and x.numel() > 0


def unroll(
    cells: nn.RNNBase, x: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `cells(x, state)` gives, and its first derivatives, up to rounding.

    cells   nn.RNN (with tanh), nn.LSTM or nn.GRU, batch_first, one direction
    x       (B, T, D), T at least 1
    state   what was shown, (layers, B, D), and for an LSTM what was kept, of the same
            shape; None: zeros

    Returns the states of the top layer (B, T, D), and `state` after the last token. A
    second derivative raises RuntimeError: those are torch's cells' to give.
    """
    parts = 2 if isinstance(cells, nn.LSTM) else 1
    if state is None:
        state = (x.new_zeros(cells.num_layers, len(x), cells.hidden_size),) * parts
    rows, last = x.transpose(0, 1), []
    for layer, first in enumerate(zip(*state, strict=True)):
        W, U, b, c = (
            getattr(cells, f"{name}_l{layer}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if isinstance(cells, nn.GRU):
            rows = _Gru.apply(F.linear(rows, W, b), *first, U, c)
        elif isinstance(cells, nn.LSTM):
            rows, kept = _Lstm.apply(F.linear(rows, W, b + c), *first, U)
        else:
            rows = _Rnn.apply(F.linear(rows, W, b + c), *first, U)
        last.append((rows[-1], kept) if parts == 2 else (rows[-1],))
    return rows.transpose(0, 1), tuple(map(torch.stack, zip(*last, strict=True)))


class _Rnn(torch.autograd.Function):
    """h_t = tanh(x_t + U h_{t-1})."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        states = x.new_empty(len(x) + 1, *h.shape)  # (T + 1, B, D)
        states[0] = h
        U = weight.t()
        for x_t, h, new in zip(x, states[:-1], states[1:], strict=True):
            torch.addmm(x_t, h, U, out=new).tanh_()
        ctx.save_for_backward(states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, U = ctx.saved_tensors
        slope = 1 - states[1:].square()
        inner = torch.empty_like(slope)  # the gradient of what tanh is given
        after = grad.new_zeros(grad.shape[1:])
        rows = zip(grad.unbind(), slope.unbind(), inner.unbind(), strict=True)
        for grad_t, slope_t, inner_t in reversed(list(rows)):
            torch.mul(grad_t + after, slope_t, out=inner_t)
            after = inner_t @ U
        return inner, after, _weight_gradient(inner, states)


class _Lstm(torch.autograd.Function):
    """Gates i, f, g, o in torch's order; c_t = f c_{t-1} + i g; h_t = o tanh c_t."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        B, D = h.shape
        states = x.new_empty(len(x) + 1, B, D)
        cells, shown = torch.empty_like(states), torch.empty_like(states[1:])
        gates = torch.empty_like(x)  # (T, B, 4 D)
        states[0], cells[0] = h, c
        U = weight.t()
        rows = zip(
            *(x.unbind(), states[:-1].unbind(), cells[:-1].unbind(), gates.unbind()),
            *(part.unbind() for part in gates.view(len(x), B, 4, D).unbind(2)),
            *(cells[1:].unbind(), shown.unbind(), states[1:].unbind()),
            strict=True,
        )
        for x_t, h, c, all_t, i, f, g, o, new_c, tanh_c, new_h in rows:
            torch.addmm(x_t, h, U, out=all_t)
            g.tanh_()
            all_t[:, : 2 * D].sigmoid_()
            o.sigmoid_()
            torch.mul(f, c, out=new_c).addcmul_(i, g)
            torch.mul(o, torch.tanh(new_c, out=tanh_c), out=new_h)
        ctx.save_for_backward(states, cells, shown, gates, weight)
        return states[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_c: Tensor) -> tuple[Tensor, ...]:
        states, cells, shown, gates, U = ctx.saved_tensors
        T, B, D = shown.shape
        i, f, g, o = (part.contiguous() for part in gates.split(D, -1))
        # What one more in c_t, and in h_t, is to each gate before its squashing.
        of_c = torch.stack(
            [g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g)], 2
        )
        of_h = shown * o * (1 - o)
        c_of_h = o * (1 - shown.square())
        inner = torch.empty_like(gates)
        parts = inner.view(T, B, 4, D)
        after, after_c = torch.zeros_like(grad_c), grad_c
        rows = zip(
            *(grad.unbind(), of_c.unbind(), of_h.unbind(), c_of_h.unbind(), f.unbind()),
            *(inner.unbind(), parts[:, :, :3].unbind(), parts[:, :, 3].unbind()),
            strict=True,
        )
        for grad_t, of_c_t, of_h_t, c_of_h_t, f_t, inner_t, ifg, o_t in reversed(
            list(rows)
        ):
            grad_h = grad_t + after
            grad_c = torch.addcmul(after_c, grad_h, c_of_h_t)
            torch.mul(grad_c[:, None], of_c_t, out=ifg)
            torch.mul(grad_h, of_h_t, out=o_t)
            after, after_c = inner_t @ U, grad_c * f_t
        return inner, after, after_c, _weight_gradient(inner, states)


class _Gru(torch.autograd.Function):
    """Gates r, z, n in torch's order; h_t = n + z (h_{t-1} - n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        B, D = h.shape
        states = x.new_empty(len(x) + 1, B, D)
        told = torch.empty_like(x)  # what the state before says to r, z and n
        rz, new = x.new_empty(len(x), B, 2 * D), torch.empty_like(states[1:])
        states[0] = h
        U = weight.t()
        rows = zip(
            *(x[..., : 2 * D].unbind(), x[..., 2 * D :].unbind()),
            *(states[:-1].unbind(), told.unbind(), told[..., : 2 * D].unbind()),
            *(told[..., 2 * D :].unbind(), rz.unbind(), rz[..., :D].unbind()),
            *(rz[..., D:].unbind(), new.unbind(), states[1:].unbind()),
            strict=True,
        )
        for x_rz, x_n, h, all_t, u_rz, u_n, rz_t, r, z, n, new_h in rows:
            torch.addmm(bias, h, U, out=all_t)
            torch.add(x_rz, u_rz, out=rz_t).sigmoid_()
            torch.addcmul(x_n, r, u_n, out=n).tanh_()
            torch.lerp(n, h, z, out=new_h)
        ctx.save_for_backward(states, told[..., 2 * D :], rz, new, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        states, told, rz, new, U = ctx.saved_tensors
        T, B, D = new.shape
        told, r, z = (part.contiguous() for part in (told, *rz.split(D, -1)))
        # What one more in h_t is to r, z and n before their squashing.
        to_n = (1 - z) * (1 - new * new)
        to_r, to_z = to_n * told * r * (1 - r), (states[:-1] - new) * z * (1 - z)
        slopes = torch.stack([to_r, to_z, to_n * r], 2)  # n's state part: r of it
        grads = torch.empty_like(new)  # of h_t, from all that came after
        inner = grad.new_empty(T, B, 3, D)
        after = torch.zeros_like(new[0])
        rows = zip(
            *(grad.unbind(), z.unbind(), slopes.unbind(), grads.unbind()),
            *(inner.unbind(), inner.view(T, B, 3 * D).unbind()),
            strict=True,
        )
        for grad_t, z_t, slopes_t, grad_h, parts, inner_t in reversed(list(rows)):
            torch.add(grad_t, after, out=grad_h)
            torch.mul(grad_h[:, None], slopes_t, out=parts)
            after = torch.addmm(grad_h * z_t, inner_t, U)
        inner = inner.view(T, B, 3 * D)
        of_x = torch.cat([inner[..., : 2 * D], grads * to_n], -1)
        return of_x, after, _weight_gradient(inner, states), inner.sum((0, 1))


def _weight_gradient(inner: Tensor, states: Tensor) -> Tensor:
    """The gradient of U: what went in at t, times the state before it."""
    return inner.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
