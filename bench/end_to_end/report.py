"""What standard output shows of the settings' summaries."""

COLUMNS = [  # title, entry of a summary, its format
    ("setting", "setting", ""), ("KL mean", "kl_mean", ".5f"), ("+-", "kl_standard_error", ".5f"),
    ("median", "kl_median", ".5f"), ("99 %", "kl_p99", ".4f"), ("worst", "kl_worst", ".3f"), ("top-1", "top1_agreement", ".4f"),
    ("perplexity", "perplexity", ".3f"), ("bytes", "byte_share", ".1%"),
    ("tokens", "tokens_read", ".0f"), ("head error", "head_error", ".4f"), ("attention ms", "attention_ms_mean", ".1f"),
    ("its median", "attention_ms_median", ".1f"), ("append ms", "append_ms_mean", ".2f"),
]


def line(cells):
    return "| " + " | ".join(cells) + " |"


def cell(value, form):
    return "-" if value is None else format(value, form)


def table(rows):
    shown = [column for column in COLUMNS if any(row[column[1]] is not None for row in rows)]
    return "\n".join([line(title for title, _, _ in shown), "|" + "---|" * len(shown)]
                     + [line(cell(row[entry], form) for _, entry, form in shown) for row in rows])


def worst_position(worst):
    lines = [f"  {worst['position']} {worst['token']!r}: KL {worst['kl']:.3f}; text {worst['next_token']!r}, dense "
             f"{worst['dense_predicts']!r}, sparse {worst['sparse_predicts']!r}"]
    for name, heads in worst["heads"].items():
        places = ", ".join(f"{head['layer']}.{head['kv_head']} {head['value']:.3f}" for head in heads)
        lines.append(f"    {name.replace('_', ' ')}: {places}")
    return "\n".join(lines)


def text(context, rows):
    """rows: the dense lane's first."""
    parts = [f"forward pass: keys {context['trace_keys']:.1e} and values {context['trace_values']:.1e} from the recorded trace; logits of "
             f"the dense lane {context['logit_difference']:.1e} from NumPy's attention", table(rows)]
    for row in rows[1:]:
        parts.append(f"\nWorst positions of {row['setting']} (heads as layer.kv_head)")
        parts += [worst_position(worst) for worst in row["worst"]]
    return "\n".join(parts)
