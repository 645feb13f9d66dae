// Figures as text, as the command line writes them.

export const DASH = "–";
const missing = (value) => value === null || value === undefined || !Number.isFinite(value);
const fixed = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const whole = (value) => (missing(value) ? DASH : fixed(value, 0));
export const loss = (value) => (missing(value) ? DASH : value.toFixed(4));
export const percent = (share, digits = 0) => (missing(share) ? DASH : `${(100 * share).toFixed(digits)}%`);

// `987`, `12,345`, `1.6 M`, `3.2 G`
export function count(value) {
  if (missing(value)) return DASH;
  const most = Math.abs(value);
  if (most < 1e6) return fixed(value, 0);
  return most < 1e9 ? `${(value / 1e6).toFixed(1)} M` : `${(value / 1e9).toFixed(1)} G`;
}

// Bytes in binary units.
export function size(bytes) {
  if (missing(bytes)) return DASH;
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1024) return unit === "B" ? `${value.toFixed(0)} B` : `${value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

// `0.42 s`, `12.3 s`, `4:05`, `1:02:03`, `3d 4:00:00`
export function duration(seconds) {
  if (missing(seconds)) return DASH;
  if (seconds < 60) return seconds < 1 ? `${seconds.toFixed(2)} s` : `${seconds.toFixed(1)} s`;
  const two = (value) => String(value).padStart(2, "0");
  const total = Math.floor(seconds);
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (!days && !hours) return `${minutes}:${two(total % 60)}`;
  const clock = `${hours}:${two(minutes)}:${two(total % 60)}`;
  return days ? `${days}d ${clock}` : clock;
}

// Short times of a chart: milliseconds too.
export function brief(seconds) {
  if (missing(seconds)) return DASH;
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  return seconds >= 0.01 || !seconds ? `${(1000 * seconds).toFixed(0)} ms` : `${(1000 * seconds).toFixed(1)} ms`;
}

// `12 s`, `5 min`, `3 h`, `2 days`
export function age(seconds) {
  for (const [limit, unit, name] of [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"]]) {
    if (seconds < limit) return `${Math.floor(Math.max(0, seconds) / unit)} ${name}`;
  }
  return `${Math.floor(seconds / 86400)} days`;
}

// Local date and time to the second.
export function when(unixS) {
  if (missing(unixS)) return DASH;
  const date = new Date(1000 * unixS);
  const local = new Date(date.getTime() - 60000 * date.getTimezoneOffset());
  return local.toISOString().slice(0, 19).replace("T", " ");
}

export const clock = (unixS) => when(unixS).slice(11);

// `4 CPU, 1 GPU`, by Ray's resource names; memory in binary units.
export function amounts(resources) {
  const parts = Object.entries(resources || {}).map(([name, value]) => amount(name, value));
  return parts.join(", ") || "nothing";
}

export function amount(name, value) {
  if (name === "memory" || name === "object_store_memory") return `${size(value)} ${name.replaceAll("_", " ")}`;
  return `${Number(value.toFixed(2))} ${name}`;
}

export const plural = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;
