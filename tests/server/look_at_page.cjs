// Opens the page in its states, and reports what axe finds: node THIS CHROMIUM URL LOCKED_URL FOLDER
const fs = require("fs");
const puppeteer = require("puppeteer-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [chromium, url, lockedUrl, folder] = process.argv.slice(2);
const launch = puppeteer.launch ?? puppeteer.default.launch;

const text = (page, selector) => page.$eval(selector, (element) => element.textContent);
const write = async (page) => {
  await page.click("#write");
  await page.waitForFunction(() => document.querySelector(".state") && document.querySelector("#halt").disabled);
};
const focus = async (page) => {
  await write(page);
  await page.focus(".tokens [tabindex='0']");
  await page.keyboard.press("ArrowRight");
};
const shown = async (page) =>
  (await page.$eval("#details", (box) => !box.hidden && box.querySelectorAll("li").length >= 5)) &&
  (await page.$$(".tokens [aria-selected=true][aria-describedby=details]")).length === 1;
const hover = async (page) => {
  await write(page);
  await (await page.$$(".tokens [role=option]"))[3].hover();
};
const stop = async (page) => {
  await page.click("#write");
  await page.waitForSelector(".tokens [role=option]");
  await page.click("#halt");
  await page.waitForFunction(() => document.querySelector("#halt").disabled);
};
const unlock = async (page) => {
  await page.type("#key", "secret");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("#key-row").hidden);
  await write(page);
};

const F = "#prompt=Once&max_tokens=40&seed=3";
const PHONE = { width: 360, height: 780, isMobile: true, hasTouch: true };
const STATES = [
  { name: "empty", expect: async (page) => (await text(page, "#served")).includes("one · two") },
  { name: "written", fragment: F, act: write, expect: async (page) => /40 tokens · .*reached max tokens/.test(await text(page, ".state")) },
  { name: "hover-dark", fragment: F, act: hover, dark: true, expect: shown },
  { name: "focus", fragment: F, act: focus, expect: shown },
  { name: "two", fragment: `${F}&other=two`, act: focus, expect: async (page) => (await page.$$(".sample")).length === 2 },
  { name: "phone-dark", fragment: `${F}&other=two`, act: focus, dark: true, view: PHONE, expect: shown },
  { name: "refused", fragment: `${F}&temperature=-1`, act: write, expect: async (page) => (await text(page, ".sample .notice")).includes("temperature=-1") },
  { name: "stopped", fragment: "#prompt=Once&max_tokens=2000&temperature=0", act: stop, expect: async (page) => (await text(page, ".state")).includes("stopped by you") },
  { name: "key", url: lockedUrl, fragment: F, act: unlock, expect: async (page) => (await text(page, ".state")).includes("40 tokens") },
];

async function look(browser, { name, fragment = "", act, dark, view, expect, url: other }) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error" && !/status of (400|401)/.test(message.text())) errors.push(message.text());
  });
  await page.setViewport(view ?? { width: 1100, height: 900 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
  await page.goto((other ?? url) + "/" + fragment, { waitUntil: "networkidle0" });
  await act?.(page);
  const asExpected = await expect(page);
  await page.screenshot({ path: `${folder}/${name}.png` });
  const session = await page.createCDPSession();
  await session.send("Runtime.evaluate", { expression: axe }); // which the page's policy does not see
  const found = await page.evaluate(async () => (await axe.run()).violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map((n) => n.target.join(" ")) })));
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  await context.close();
  return { name, errors, violations: found, overflow, as_expected: asExpected };
}

(async () => {
  const browser = await launch.call(puppeteer, { executablePath: chromium, args: ["--no-sandbox"] });
  const states = [];
  for (const state of STATES) states.push(await look(browser, state));
  await browser.close();
  console.log(JSON.stringify(states));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
