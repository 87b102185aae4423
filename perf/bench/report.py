"""The tables on standard output."""

from perf.bench import usl

MARKS = {"generator-bound": "G", "errors": "E", "noisy": "N", "ended-early": "X"}
LEGEND = ("marks: G the generator was the bottleneck, E errors (see the JSON), N something else used the servers' CPUs, "
          "X the server ended early")


def group_lines(group):
    lines = [f"test {group['test']}, {group['cores']} core{'s' if group['cores'] > 1 else ''}: {group['title']}"
             + (" (not finished)" if group["partial"] else "")]
    width = max([6] + [len(name) for name in group["servers"]])
    lines.append(f"  {'':{width}}  requests/s       (min to max)        CPU us/request  user system   ratio (95 % interval)"
                 f"   server   load  peak MB  ctx/req")
    for name, entry in group["servers"].items():
        rate, cpu, used = entry["requests_per_s"], entry["cpu_us_per_request"], entry["cpus_used"]
        ratio = entry.get("ratio")
        text = f"{ratio['median']:5.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" if ratio else ""
        switches = entry["switches_per_request"]
        lines.append(
            f"  {name:{width}}  {rate['median']:10.0f}  ({rate['min']:8.0f} to {rate['max']:8.0f})  {cpu['median']:9.2f} "
            f"{cpu['user']:10.2f} {cpu['system']:6.2f}   {text:23}  {used['server_share']:6.0%} {used['load_share']:6.0%} "
            f"{entry['peak_rss_bytes'] / 1e6:8.1f} {switches['voluntary'] + switches['involuntary']:8.3f}  "
            + "".join(MARKS[mark] for mark in entry["marks"])
            + (f"  busiest CPU / mean {entry['balance']:.2f}" if group["cores"] > 1 else ""))
    return lines


def latency_lines(key, servers):
    lines = [f"latency at a constant rate, test {key.split('/')[0]}, cores {key.split('/')[1]}, us (from the intended time)"]
    for name, shares in servers.items():
        for share, found in shares.items():
            us = found["latency_us"]
            bad = f"  errors {found['errors']}, unanswered {found['unanswered']}" \
                if found["errors"] or found["unanswered"] else ""
            lines.append(f"  {name:10} {share} % = {found['rate']:9.0f}/s  p50 {us['50']:9.0f}  p90 {us['90']:9.0f}  "
                         f"p99 {us['99']:9.0f}  p99.9 {us['99.9']:9.0f}  generator late p99 {found['lag_us_p99']:7.0f}{bad}")
    return lines


def idle_lines(idle):
    lines = ["memory of idle connections (PSS of the server; the kernel's sockets are not in it)"]
    for name, found in idle.items():
        lines.append(f"  {name:10} {max(0, found['bytes_per_connection']):8.0f} bytes each, {found['connections']} connections "
                     f"({found['before_bytes'] / 1e6:.1f} MB before, {found['after_bytes'] / 1e6:.1f} MB after)")
    return lines


def scale_lines(result):
    """Fits where there are enough core counts."""
    points = {}
    for group in result["groups"].values():
        for name, entry in group["servers"].items():
            if "generator-bound" not in entry["marks"]:
                points.setdefault((group["test"], name), []).append((group["cores"], entry["requests_per_s"]["median"]))
    lines = []
    for (test, name), found in points.items():
        lines += usl.describe(f"  test {test}, {name}", found)
    if lines:
        return ["scale, by the Universal Scalability Law", *lines, "  " + usl.ASSUMPTIONS]
    return [f"scale: {usl.LEAST_POINTS} core counts are needed for a fit; scripts/scale counts what would limit it"]


def whole(result):
    lines = []
    for group in result["groups"].values():
        lines += group_lines(group) + [""]
    if any(entry["marks"] for group in result["groups"].values() for entry in group["servers"].values()):
        lines += [LEGEND, ""]
    for key, servers in result["latency"].items():
        lines += latency_lines(key, servers) + [""]
    if result["idle"]:
        lines += idle_lines(result["idle"]) + [""]
    lines += scale_lines(result)
    for failure in result["failures"]:
        lines.append(f"failed: {failure['where']}, {failure['server']}: {failure['text'].splitlines()[0]}")
    return "\n".join(lines)
