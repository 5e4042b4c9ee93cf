"""Settings as they are typed: `ratio=0.9,tail=drop,cluster=32`. The names of the options are those of options.hpp."""

# Values that are words, in the order of the library's enumerations; they are handed on as numbers.
WORDS = {
    "tail": ("drop", "estimated", "calibrated"),
    "certificate": ("off", "on"),
    "unit": ("automatic", "clusters", "tokens"),
    "codes": ("off", "on"),
    "errors": ("off", "on"),
}


def parse_value(option, value):
    if option in WORDS:
        if value not in WORDS[option]:
            raise ValueError(f"settings: {option} must be one of {', '.join(WORDS[option])}, got '{value}'")
        return float(WORDS[option].index(value))
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"settings: {option} must be a number, got '{value}'") from None


def parse(setting):
    """{name: number} of one setting. Which names there are, and their ranges, the library checks."""
    options = {}
    for part in filter(None, setting.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"settings: an option must be name=value, got '{part}'")
        options[option] = parse_value(option, value)
    return options
