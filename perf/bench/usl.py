"""The Universal Scalability Law (N. J. Gunther): X(n) = lambda n / (1 + sigma (n - 1) + kappa n (n - 1)).

lambda: throughput of one core; sigma: share of the work that waits for a turn; kappa: cost of keeping cores coherent.
"""

import itertools

LEAST_POINTS = 4  # three unknowns, and one to spare


def solve(matrix, right):
    """Gaussian elimination with pivoting; None when singular."""
    size = len(right)
    rows = [list(row) + [value] for row, value in zip(matrix, right)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(rows[r][i]))
        if abs(rows[pivot][i]) < 1e-15:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for j in range(size):
            if j != i:
                factor = rows[j][i] / rows[i][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i])]
    return [rows[i][size] / rows[i][i] for i in range(size)]


def least_squares(columns, target):
    normal = [[sum(a * b for a, b in zip(one, other)) for other in columns] for one in columns]
    return solve(normal, [sum(a * b for a, b in zip(column, target)) for column in columns])


def throughput(fit, n):
    return fit["lambda"] * n / (1 + fit["sigma"] * (n - 1) + fit["kappa"] * n * (n - 1))


def fit(points):
    """points: [(cores, requests/s)]. {lambda, sigma, kappa, error} or None when there are too few.

    n / X is linear in 1/lambda, sigma/lambda and kappa/lambda. None of these may be negative: of the models with some of
    sigma and kappa left out, the best one that keeps to that is taken. error: root mean square, relative."""
    points = sorted((n, x) for n, x in points if x > 0)
    if len({n for n, _ in points}) < LEAST_POINTS:
        return None
    # Weighted by X / n, so that relative errors count the same at every core count.
    terms = (lambda n: 1.0, lambda n: n - 1.0, lambda n: n * (n - 1.0))
    basis = [[term(n) * x / n for n, x in points] for term in terms]
    best = None
    for extra in itertools.chain.from_iterable(itertools.combinations((1, 2), k) for k in range(3)):
        chosen = (0,) + extra
        found = least_squares([basis[i] for i in chosen], [1.0] * len(points))
        if not found or found[0] <= 0 or any(value < 0 for value in found[1:]):
            continue
        values = dict(zip(chosen, found))
        model = {"lambda": 1 / values[0], "sigma": values.get(1, 0.0) / values[0], "kappa": values.get(2, 0.0) / values[0]}
        errors = [(throughput(model, n) / x - 1) ** 2 for n, x in points]
        model["error"] = (sum(errors) / len(errors)) ** 0.5
        if best is None or model["error"] < best["error"]:
            best = model
    return best


def peak_cores(model):
    """Where throughput is highest; None when it never falls."""
    if model["kappa"] <= 0:
        return None
    return max(1.0, ((1 - model["sigma"]) / model["kappa"]) ** 0.5) if model["sigma"] < 1 else 1.0


def describe(name, points, cores=96):
    """Lines about one server's fit."""
    model = fit(points)
    if not model:
        return []
    peak = peak_cores(model)
    return [f"{name}: {model['lambda']:.0f} requests/s on a core, sigma {model['sigma']:.4f}, kappa {model['kappa']:.2e} "
            f"(fitted to {len(points)} core counts, {model['error']:.1%} off); {cores} threads: "
            f"{throughput(model, cores):.0f} requests/s"
            + (f", the most with {peak:.0f} threads" if peak and peak < cores else "")]


ASSUMPTIONS = ("Assumes that threads beyond those measured are like them (a second thread of a core is not a core), that "
               "memory, kernel and network of another NUMA node cost the same, and that the load keeps up.")
