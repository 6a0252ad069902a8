// Validates objects of other projects by the schemas in npm's @kubernetes-models. Reads a JSON list from standard input and
// prints a JSON list of what is wrong. An object of a group without schemas is wrong.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(process.argv[2] + "/package.json"));
const PACKAGES = {
  "monitoring.coreos.com": "prometheus-operator",
  "keda.sh": "keda",
  "cert-manager.io": "cert-manager",
};
const wrong = [];
for (const thing of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = thing.apiVersion.split("/");
  const name = `${thing.apiVersion} ${thing.kind}/${thing.metadata.name}`;
  try {
    const root = require.resolve(`@kubernetes-models/${PACKAGES[group]}/package.json`).replace("package.json", "");
    const kinds = await import(pathToFileURL(`${root}${group}/${version}/${thing.kind}.js`));
    new kinds[thing.kind](thing).validate();
  } catch (error) {
    wrong.push(`${name}: ${error.message}`);
  }
}
console.log(JSON.stringify(wrong));
