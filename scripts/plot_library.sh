#!/usr/bin/env bash
# Makes src/iconoclast/reports/pages/assets/plot.js, what the report page uses of Observable Plot, and the licences of what is
# in it. Needs npm and its registry; nothing else does.
set -euo pipefail
assets=$(cd "$(dirname "$0")/../src/iconoclast/reports/pages/assets" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund @observablehq/plot@0.6.17 d3@7.9.0 interval-tree-1d@1.0.4 isoformat@0.2.1 esbuild@0.28.2
cat > entry.js <<'JS'
export {
  areaY, axisX, dot, line, lineY, plot, pointer, pointerX, pointerY, ruleX, ruleY, text, tip
} from "@observablehq/plot";
JS
banner="// Of Observable Plot 0.6.17 and what it needs, by scripts/plot_library.sh. Licences: LICENSES.txt"
npx esbuild entry.js --bundle --minify --format=iife --global-name=Plot --legal-comments=none --banner:js="$banner" \
    --metafile=parts.json --outfile="$assets/plot.js" --log-level=warning
node --input-type=module > "$assets/LICENSES.txt" <<'JS'
import { readFileSync, readdirSync } from "node:fs";
const inputs = Object.keys(JSON.parse(readFileSync("parts.json")).inputs);
const names = [...new Set(inputs.map((file) => file.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean))].sort();
console.log("plot.js holds parts of these packages.");
for (const name of names) {
  const folder = `node_modules/${name}`, { version, license } = JSON.parse(readFileSync(`${folder}/package.json`));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  console.log(`\n--- ${name} ${version} (${license})\n\n${file ? readFileSync(`${folder}/${file}`, "utf8").trim() : ""}`);
}
JS
