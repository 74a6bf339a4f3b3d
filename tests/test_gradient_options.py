"""Options of averaged gradients: their signatures, and the errors they raise."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import pytest

from smoothout_jax import smooth, smoothout_value_and_grad, uniform
from smoothout_jax.gradients import SharedOptions, SmoothOptions

KEY = jax.random.key(3)
NOISE = uniform(0.3)


def squares(params, *_):
    return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))


EVEN = {"num_copies": 4}
ODD = {"num_copies": 4, "clean_weight": 0.1}
OVER_MESH = {"num_copies": 8, "spmd_axis_name": "d"}
WRONG_OPTIONS = [
    ({"num_copies": 0}, ValueError, "num_copies must be at least 1, got 0"),
    ({"num_copies": 2.0}, TypeError, "num_copies must be .* integer, got 2.0"),
    ({"num_copies": True}, TypeError, "num_copies must be .* integer, got True"),
    ({"num_copies": 3, "antithetic": True}, ValueError, "even; got num_copies=3"),
    ({"clean_weight": -0.1}, ValueError, r"clean_weight .* got -0\.1"),
    ({"clean_weight": 1.0}, ValueError, r"clean_weight .* \[0, 1\) .* got 1\.0"),
    ({"clean_weight": math.nan}, ValueError, "clean_weight .* got nan"),
    ({"clean_weight": "a"}, TypeError, "clean_weight must be a number, got 'a'"),
    ({"has_aux": True, "aux": "all"}, ValueError, "aux must be .*; got 'all'"),
    ({"has_aux": True, "aux": "clean"}, ValueError, "aux='clean'.* clean_weight"),
    ({"aux": "stack"}, ValueError, "aux='stack' needs has_aux=True"),
    ({"aux": lambda stacked: stacked}, ValueError, "aux=a function needs has_aux"),
    ({"execution": "pmap"}, ValueError, "execution must be .*; got 'pmap'"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be .* integer, got 2.0"),
    ({"chunk_size": 1, "execution": "vmap"}, ValueError, "excludes .*'vmap'"),
    ({"chunk_size": 1, "execution": "unroll"}, ValueError, "excludes .*'unroll'"),
    ({"chunk_size": 3} | EVEN, ValueError, "chunk_size=3 does not .* 4 copies"),
    ({"chunk_size": 2} | ODD, ValueError, "chunk_size=2 does not .* 5 copies"),
    (OVER_MESH | {"execution": "scan"}, ValueError, "excludes .* execution='scan'"),
    (OVER_MESH | {"chunk_size": 2}, ValueError, "excludes .* chunk_size=2"),
    (OVER_MESH | {"axis_name": "d"}, ValueError, "shard_map; .* axis_name='d'"),
    ({"batch_argnums": 0}, ValueError, "batch_argnums .* at least 1; got 0"),
    ({"copy_argnums": (1, -1)}, ValueError, r"copy_argnums .* got \(1, -1\)"),
    ({"batch_argnums": (1, 1)}, ValueError, r"twice: \(1, 1\)"),
    ({"batch_argnums": 1, "copy_argnums": [1]}, ValueError, r"twice: .* \(1,\)"),
    ({"batch_argnums": 1.0}, TypeError, "batch_argnums .* integer .* got 1.0"),
    ({"copy_argnums": "1"}, TypeError, "copy_argnums .* integer .* got '1'"),
    ({"compute_dtype": "int32"}, ValueError, "must be a floating dtype, got 'int32'"),
    ({"compute_dtype": "narrow"}, TypeError, "data type 'narrow' not understood"),
    ({"noise": 0.1}, TypeError, "noise must be a function.*; got 0.1"),
    ({"fun": 0.1}, TypeError, "fun must be a function.*; got 0.1"),
    ({"fun": NOISE}, TypeError, "were fun and noise swapped"),
    ({"num_copy": 2}, TypeError, "unexpected keyword argument 'num_copy'"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
def test_wrong_options_are_refused_at_once(options, error, message):
    for transform in (smooth, smoothout_value_and_grad):
        with pytest.raises(error, match=message):
            transform(**{"fun": squares, "noise": NOISE} | options)


BY_ROW, BY_COPY, TWO = {"batch_argnums": 1}, {"copy_argnums": 1}, {"num_copies": 2}
VECTOR = {"fun": lambda w: w}
COUNTER = {"fun": lambda w: (w.sum(), jnp.arange(2)), "has_aux": True}
MISSHAPEN = {"noise": lambda key, params, step=None: jnp.ones(1)}
SCHEDULE = {"noise": uniform(lambda step: 0.1)}
INTEGERS = {"params": {"n": jnp.arange(3)}}
CANNOT = "'layer', which several copies can neither average nor"


def with_aux(leaf):
    return TWO | {"fun": lambda w: (w.sum(), {"found": leaf}), "has_aux": True}


WRONG_CALLS = [
    (
        BY_ROW | EVEN,
        [{"x": jnp.ones((7, 2))}],
        ValueError,
        r"1\['x'\] has 7 .* 4 copies",
    ),
    (BY_ROW | ODD, [jnp.ones((8, 2))], ValueError, "argument 1 has 8 .* 5 copies"),
    (BY_ROW, [3.0], ValueError, "batch_argnums: argument 1 has no rows"),
    (BY_ROW, [], ValueError, "batch_argnums names argument 1, but fun was given 1 pos"),
    (
        BY_COPY | EVEN,
        [jnp.ones((5, 2))],
        ValueError,
        r"1 of shape \(5, 2\) .* 4 copies",
    ),
    (BY_COPY, [3.0], ValueError, r"copy_argnums: argument 1 of shape \(\)"),
    (VECTOR, [], TypeError, r"scalar-output functions. Output had shape: \(2,\)"),
    (
        {"fun": lambda w: jnp.arange(2), "by": smooth} | TWO,
        [],
        TypeError,
        r"int32\[2\], which has no mean",
    ),
    (COUNTER | EVEN, [], TypeError, "int32.*aux='first' or aux='stack'"),
    (with_aux(KEY), [], TypeError, r"\['found'\] .* key<\w+>\[\], which has no mean.*"),
    (with_aux("layer"), [], TypeError, rf"\['found'\] of fun is {CANNOT}"),
    (with_aux("layer") | {"aux": "stack"}, [], TypeError, CANNOT),
    (MISSHAPEN, [], ValueError, r"noise .*\(1,\)"),
    (SCHEDULE, [], ValueError, "radius is a schedule, which needs the step"),
    (INTEGERS, [], ValueError, "params has no floating .* leaf .*, only int32"),
    ({"key": 0}, [], TypeError, "key must be a single PRNG key.* got 0"),
    ({"key": KEY[None]}, [], TypeError, r"single .* got an array of key<fry>\[1\]"),
    ({"key": {"w": jnp.ones(3)}}, [], TypeError, "1 leaves; did you forget the key?"),
]


@pytest.mark.parametrize("execution", ["unroll", "chunks"])
@pytest.mark.parametrize(("options", "args", "error", "message"), WRONG_CALLS)
def test_wrong_calls_are_refused(execution, options, args, error, message):
    defaults = {"fun": squares, "noise": NOISE, "key": KEY, "params": jnp.ones(2)}
    options = defaults | {"by": smoothout_value_and_grad} | options
    key, params, by = (options.pop(name) for name in ("key", "params", "by"))
    if execution == "unroll":
        options["execution"] = execution
    else:
        options["chunk_size"] = 2 if options.get("num_copies", 1) == 2 else 1
    fn = by(**options)
    with pytest.raises(error, match=message):
        fn(key, params, *args)


def test_integers_of_the_clean_copy_have_no_average_over_devices():
    options = {"clean_weight": 0.5, "aux": "clean", "axis_name": "d"} | COUNTER
    fn = smoothout_value_and_grad(noise=NOISE, **options)
    over_devices = jax.vmap(fn, None, None, axis_name="d", axis_size=2)
    with pytest.raises(TypeError, match=r"int32\[2\], which has no mean"):
        over_devices(KEY, jnp.ones(2))


@pytest.mark.parametrize("name", ["num_copies", "clean_weight"])
def test_what_shapes_the_program_cannot_be_traced(name):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        jax.jit(lambda value: smooth(squares, NOISE, **{name: value}))(0)


@pytest.mark.parametrize("transform", [smooth, smoothout_value_and_grad])
def test_signatures_show_every_option_with_its_default(transform):
    options = inspect.signature(transform).parameters
    documented = SmoothOptions.__doc__ + SharedOptions.__doc__
    listed = inspect.get_annotations(SmoothOptions)
    for name in listed | inspect.get_annotations(SharedOptions):
        assert options[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert transform(squares, NOISE, **{name: options[name].default})
        assert re.search(rf"^ +{name}: ", documented, re.M)


def test_smooth_takes_no_rise():
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss_rise'"):
        smooth(squares, NOISE, loss_rise=0.1)
