// The switch over sample grids, and the charts.
(() => {
  "use strict";

  const form = document.querySelector(".switch");
  const samples = [...document.querySelectorAll(".sample")];

  function choose() {
    // A choice of one value has no buttons: every grid has it.
    const chosen = new Map(
      [...form.querySelectorAll("input:checked")].map((input) => [Number(input.name.split("-")[1]), input.value]),
    );
    let found = false;
    for (const figure of samples) {
      const setting = JSON.parse(figure.dataset.setting);
      const fits = [...chosen].every(([place, value]) => setting[place] === value);
      figure.hidden = !fits || found;
      found = found || fits;
    }
    document.querySelector(".absent").hidden = found;
  }

  if (form) {
    form.addEventListener("change", choose);
    form.addEventListener("submit", (event) => event.preventDefault());
    choose();
  }

  const dashes = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
  const markers = ["circle", "rect", "triangle", "rectRot", "crossRot", "star", "rectRounded"];
  const drawn = [];

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function short(value) {
    return Number(value.toPrecision(10)).toString();
  }

  function axis(label, log, ticks) {
    const options = {
      type: log ? "logarithmic" : "linear",
      title: { display: true, text: label, color: color("quiet") },
      grid: { color: color("rule") },
      border: { color: color("rule") },
      ticks: { color: color("quiet"), maxRotation: 0 },
    };
    if (ticks && ticks.length) {
      options.min = ticks[0] / 1.08;
      options.max = ticks[ticks.length - 1] * 1.08;
      options.afterBuildTicks = (scale) => {
        scale.ticks = ticks.map((value) => ({ value }));
      };
      options.ticks.callback = short;
    } else if (log) {
      options.ticks.callback = function (value) {
        const leading = Number((value / 10 ** Math.floor(Math.log10(value) + 1e-9)).toPrecision(6));
        const decades = Math.log10(this.max / this.min);
        const shown = decades < 0.7 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 3 ? [1, 2, 5] : [1];
        return shown.includes(leading) ? short(value) : null;
      };
    } else {
      options.ticks.callback = short;
    }
    return options;
  }

  function line(series) {
    const ink = color(`line-${series.colour % 7}`);
    return {
      label: series.label,
      data: series.points.map(([x, y, said]) => ({ x, y, said })),
      borderColor: ink,
      backgroundColor: ink,
      borderDash: dashes[series.dash % dashes.length],
      borderWidth: 2,
      pointStyle: markers[(series.colour + series.dash) % markers.length],
      pointRadius: series.points.length > 30 ? 0 : 4,
      pointHoverRadius: 7,
      pointBorderWidth: 2,
    };
  }

  function level(name, value, from, to) {
    return {
      label: name,
      data: [from, to].map((x) => ({ x, y: value, said: short(Number(value.toPrecision(4))) })),
      borderColor: color("quiet"),
      backgroundColor: color("quiet"),
      borderDash: [6, 4],
      borderWidth: 1.5,
      pointRadius: 0,
      pointStyle: "line",
    };
  }

  function draw(chart) {
    const xs = chart.series.flatMap((series) => series.points.map(([x]) => x));
    const ends = [Math.min(...xs), Math.max(...xs)];
    const x = axis(chart.x_label, chart.x_log, chart.ticks);
    const y = axis(chart.y_label, chart.y_log, null);
    x.reverse = chart.reverse;
    if (chart.y_log) {
      const ys = [
        ...chart.series.flatMap((series) => series.points.map(([, value]) => value)),
        ...chart.levels.map(([, value]) => value),
      ];
      y.min = Math.min(...ys) / 1.2;
      y.max = Math.max(...ys) * 1.2;
    } else {
      y.beginAtZero = true;
    }
    const canvas = document.getElementById(`chart-${chart.key}`);
    // A long legend takes its room from below and not from the chart.
    const more = Math.max(0, chart.series.length + chart.levels.length - 5);
    const box = canvas.parentElement;
    box.style.height = "";
    box.style.height = `${box.clientHeight + more * (box.clientWidth < 600 ? 12 : 4)}px`;
    return new Chart(canvas, {
      type: "line",
      data: {
        datasets: [
          ...chart.series.map(line),
          ...chart.levels.map(([name, value]) => level(name, value, ...ends)),
        ],
      },
      options: {
        maintainAspectRatio: false,
        animation: false,
        interaction: { mode: "nearest", axis: "x", intersect: false },
        scales: { x, y },
        plugins: {
          legend: { position: "bottom", labels: { color: color("ink"), usePointStyle: true, boxHeight: 7 } },
          tooltip: {
            displayColors: false,
            callbacks: {
              title: (items) => `${chart.x_name} = ${short(items[0].parsed.x)}`,
              label: (item) => `${item.dataset.label}: ${item.raw.said}`,
            },
          },
        },
      },
    });
  }

  function drawAll() {
    drawn.splice(0).forEach((chart) => chart.destroy());
    const charts = JSON.parse(document.getElementById("charts").textContent);
    drawn.push(...charts.map(draw));
  }

  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
