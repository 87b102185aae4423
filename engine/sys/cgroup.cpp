#include "engine/sys/cgroup.hpp"

#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

namespace percore::sys {
namespace {

// A mounted cgroup hierarchy that can hold CPU quotas. Both paths as /proc/self/mountinfo gives them.
struct hierarchy {
  bool v2 = false;
  std::string root;   // the cgroup that appears at the mount point, relative to the cgroup namespace
  std::string point;  // the mount point
};

// The process's place in the two kinds of hierarchy, relative to the cgroup namespace; empty: in none.
struct membership {
  std::string v1;
  std::string v2;
};

bool has_item(std::string_view comma_list, std::string_view wanted) {
  while (!comma_list.empty()) {
    const std::size_t end = comma_list.find(',');
    if (comma_list.substr(0, end) == wanted) return true;
    if (end == std::string_view::npos) break;
    comma_list.remove_prefix(end + 1);
  }
  return false;
}

// mountinfo writes space, tab, newline and backslash as \ooo (proc_pid_mountinfo(5)).
std::string decode_octal(std::string_view text) {
  const auto digit = [&](std::size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '7'; };
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      result += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      result += text[i];
    }
  }
  return result;
}

// Lines of /proc/self/cgroup: "id:controllers:path", "0::path" for v2 (cgroups(7)); a path may hold colons.
membership read_membership(const std::string& root) {
  membership result;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string_view controllers = std::string_view(line).substr(first + 1, second - first - 1);
    if (line.compare(0, first, "0") == 0 && controllers.empty()) {
      result.v2 = line.substr(second + 1);
    } else if (has_item(controllers, "cpu")) {
      result.v1 = line.substr(second + 1);
    }
  }
  return result;
}

// Lines of /proc/self/mountinfo: "id parent device root point options [tags...] - type source super-options".
std::vector<hierarchy> read_hierarchies(const std::string& root) {
  std::vector<hierarchy> result;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string skipped, mount_root, point, type, source, super_options;
    fields >> skipped >> skipped >> skipped >> mount_root >> point;
    while (fields >> skipped && skipped != "-") {
    }
    if (!(fields >> type >> source)) continue;
    fields >> super_options;
    const bool v2 = type == "cgroup2";
    if (!v2 && (type != "cgroup" || !has_item(super_options, "cpu"))) continue;
    result.push_back({v2, decode_octal(mount_root), decode_octal(point)});
  }
  return result;
}

// One cgroup's limit in CPUs; 0: none, or no such file.
double read_limit(const std::string& directory, bool v2) {
  double quota = 0;
  double period = 0;
  if (v2) {
    std::ifstream file(directory + "/cpu.max");  // "max 100000" or "250000 100000", in microseconds
    if (!(file >> quota >> period)) return 0;
  } else {
    std::ifstream quota_file(directory + "/cpu.cfs_quota_us");  // -1: no limit
    std::ifstream period_file(directory + "/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) return 0;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

bool is_at_or_below(std::string_view path, std::string_view top) {
  if (top == "/") return path.starts_with('/');
  return path.starts_with(top) && (path.size() == top.size() || path[top.size()] == '/');
}

// The part of the process's path below the mount point ("" for the mount point itself). False when the mount
// shows none of the process's ancestors.
bool path_below_mount(const hierarchy& mount, const std::string& process, std::string& below) {
  below.clear();
  // "/.." at the front: outside of the cgroup namespace, where the kernel does not tell the names
  // (cgroup_namespaces(7)). A mount made further out shows an ancestor at its top, and no more can be found.
  if (mount.root.starts_with("/..")) return true;
  // The process was moved out of the namespace: the mounts inside show other groups.
  if (process.starts_with("/..")) return false;
  if (!is_at_or_below(process, mount.root)) return false;
  below = mount.root == "/" ? process : process.substr(mount.root.size());
  while (!below.empty() && below.back() == '/') below.pop_back();
  return true;
}

void take_smaller(double& smallest, double limit) {
  if (limit > 0 && (smallest <= 0 || limit < smallest)) smallest = limit;
}

}  // namespace

double read_cpu_quota(const std::string& root) {
  const membership process = read_membership(root);
  double smallest = 0;
  for (const hierarchy& mount : read_hierarchies(root)) {
    const std::string& path = mount.v2 ? process.v2 : process.v1;
    std::string below;
    if (path.empty() || !path_below_mount(mount, path, below)) continue;
    // A directory that does not exist (a process seen from another namespace) has no file and is passed over.
    for (;;) {
      take_smaller(smallest, read_limit(root + mount.point + below, mount.v2));
      if (below.empty()) break;
      below.erase(below.rfind('/'));
    }
  }
  return smallest;
}

}  // namespace percore::sys
