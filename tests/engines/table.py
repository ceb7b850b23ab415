"""One table of results, and what was missed."""


class Table:
    def __init__(self, title: str, columns: list[str]):
        self.title, self.columns, self.rows = title, columns, []

    def add(self, *cells):
        assert len(cells) == len(self.columns), (self.columns, cells)
        self.rows.append([number(cell) for cell in cells])
        print("  " + " | ".join(self.rows[-1]), flush=True)

    def __str__(self):
        if not self.rows:
            return ""
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]

        def line(cells):
            return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([f"\n{self.title}\n", line(self.columns), rule, *map(line, self.rows)])


class Checks:
    """Floors that hold and floors that are missed."""

    def __init__(self):
        self.passed, self.failed = 0, []

    def check(self, what: str, holds: bool, seen=""):
        if holds:
            self.passed += 1
        else:
            self.failed.append(f"{what}: {seen}" if seen else what)
            print(f"  MISSED: {self.failed[-1]}", flush=True)
        return holds

    def at_most(self, what: str, value: float, limit: float):
        # NaN must fail
        return self.check(f"{what} <= {number(limit)}", value <= limit, f"is {number(value)}")


def number(value) -> str:
    if isinstance(value, float):
        if value == 0:
            return "0"
        return f"{value:.2e}" if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.4g}"
    return str(value)
