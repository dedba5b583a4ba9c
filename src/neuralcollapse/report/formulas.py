"""The formulas of the measures as MathML, which browsers draw themselves."""

from __future__ import annotations


def formula(key: str) -> str:
    """The formula of a measure; empty for those that words say better."""
    return f'<math display="inline">{_FORMULAS[key]}</math>' if key in _FORMULAS else ""


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _i(name: str) -> str:
    return f"<mi>{name}</mi>"


def _o(sign: str) -> str:
    return f"<mo>{sign}</mo>"


def _n(number: str) -> str:
    return f"<mn>{number}</mn>"


def _sub(base: str, below: str) -> str:
    return f"<msub>{base}{below}</msub>"


def _sup(base: str, above: str) -> str:
    return f"<msup>{base}{above}</msup>"


def _over(top: str, bottom: str) -> str:
    return f"<mfrac>{top}{bottom}</mfrac>"


def _norm(*parts: str) -> str:
    return _row(_o("‖"), *parts, _o("‖"))


_MINUS, _T = _o("\N{MINUS SIGN}"), _o("\N{DOWN TACK}")
_SIGMA = _i("\N{GREEK SMALL LETTER SIGMA}")
_TR, _K, _W, _M, _B = '<mi mathvariant="normal">tr</mi>', _i("K"), _i("W"), _i("M"), _i("b")
_WITHIN, _BETWEEN = (_sub(_i("S"), _i(kind)) for kind in "WB")
_CENTRE, _ONE = _sub(_i("μ"), _i("G")), '<mn mathvariant="bold">1</mn>'
_FRAME = _row(_o("("), _i("I"), _MINUS, _over(_row(_ONE, _sup(_ONE, _T)), _K), _o(")"), _o("/"))
_SIMPLEX = _row(_FRAME, f"<msqrt>{_row(_K, _MINUS, _n('1'))}</msqrt>")
_PRODUCT = _row(_W, _sup(_M, _T))


def _off_simplex(product: str) -> str:
    """The distance of a product over its norm from the simplex ETF."""
    return _norm(_over(product, _norm(product)), _MINUS, _SIMPLEX)


def _mean_over_pairs(part: str) -> str:
    return _row(_sub('<mi mathvariant="normal">mean</mi>', _row(_i("j"), _o("≠"), _i("k"))), part)


def _spread(part: str) -> str:
    return _row('<mi mathvariant="normal">std</mi>', part, _o("/"), '<mi mathvariant="normal">mean</mi>', part)


def _cosine(vector: str) -> str:
    names = _row(_sub(_i(vector), _i("j")), _o(","), _sub(_i(vector), _i("k")))
    return _row('<mi mathvariant="normal">cos</mi>', _o("("), names, _o(")"))


def _mean_of(vector: str) -> str:
    return _norm(_sub(_i(vector), _i("k")))


_BIAS = _row(_B, _o("+"), _W, _CENTRE)
_TO_GRAM = _row(_o("+"), _over(_n("1"), _row(_K, _MINUS, _n("1"))))
_FORMULAS = {
    "nc1": _row(_over(_n("1"), _K), _TR, _o("("), _WITHIN, _sup(_BETWEEN, _o("+")), _o(")")),
    "nc1_quotient": _row(_TR, _WITHIN, _o("/"), _TR, _BETWEEN),
    "nc1_cdnv": _mean_over_pairs(
        _over(
            _row(*(_sup(_sub(_SIGMA, _i(k)), _n("2")) + sign for k, sign in (("j", _o("+")), ("k", "")))),
            _row(_n("2"), _sup(_norm(_sub(_i("μ"), _i("j")), _MINUS, _sub(_i("μ"), _i("k"))), _n("2"))),
        )
    ),
    "nc2": _off_simplex(_row(_W, _sup(_W, _T))),
    "nc2_means": _off_simplex(_row(_M, _sup(_M, _T))),
    "nc3": _off_simplex(_PRODUCT),
    "nc3_distance": _norm(_over(_W, _norm(_W)), _MINUS, _over(_M, _norm(_M))),
    "nc0": _over(_sup(_norm(_sup(_ONE, _T), _W), _n("2")), _row(_K, _sup(_norm(_W), _n("2")))),
    "nc_bias": _norm(_BIAS),
    "equinorm_means": _spread(_mean_of("m")),
    "equinorm_weights": _spread(_mean_of("w")),
    "equiangularity_means": _row('<mi mathvariant="normal">std</mi>', _cosine("m")),
    "equiangularity_weights": _row('<mi mathvariant="normal">std</mi>', _cosine("w")),
    "max_equiangularity_means": _mean_over_pairs(_row(_o("|"), _cosine("m"), _TO_GRAM, _o("|"))),
    "max_equiangularity_weights": _mean_over_pairs(_row(_o("|"), _cosine("w"), _TO_GRAM, _o("|"))),
}
